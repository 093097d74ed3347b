"""Activation statistics, the importances of Definition 1, histograms, and top activating examples."""
