"""Save and load results, and validate files."""
