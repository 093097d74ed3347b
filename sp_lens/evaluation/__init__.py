"""Evaluate a model on a corpus: accuracy, loss and perplexity, with confidence intervals over documents."""
