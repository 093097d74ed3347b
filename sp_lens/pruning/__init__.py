"""Algorithm 1: prune step by step, save and resume the run, and estimate its cost."""
