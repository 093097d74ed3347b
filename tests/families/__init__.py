"""The conformance suite: the same tests for every supported architecture."""
