"""Evaluate a model on a corpus: accuracy, loss and perplexity, with bootstrap confidence intervals."""
