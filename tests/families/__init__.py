"""The conformance suite: what holds for one architecture holds for each."""
