"""What everything costs, as a ratio against a bare forward pass in the same run: `python -m benchmarks`."""
