"""Fault injection: killed, interrupted and damaged pruning runs. `python -m faults` in tests/ runs all of them."""
