"""Load hooked models, run them, and access their hook points and weights."""
