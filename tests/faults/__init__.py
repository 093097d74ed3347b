"""What befalls a run of hours, on purpose: `python -m faults` in tests/ tries it many times, and writes a table."""
