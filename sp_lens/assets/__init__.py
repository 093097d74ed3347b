"""Bundled models and their model cards, which `load_model` reads by name."""
