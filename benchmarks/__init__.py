"""Benchmarks of speed and memory, most of them relative to a bare forward pass: `python -m benchmarks`."""
