"""Figures of importances and scores of neurons and attention heads."""
