"""Figures of pruning runs."""
