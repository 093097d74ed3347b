"""Scores (Definition 2), their uncertainty and stability, and tests of specialisation."""
