"""Change what a model computes: ablate neurons, remove them from the weights, and export the pruned model."""
