"""The command line `sp-lens`, a thin layer around the public functions."""
