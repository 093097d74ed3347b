"""The experiments of the paper, the toxicity measurement, and the demo."""
