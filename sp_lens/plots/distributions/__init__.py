"""Figures of activation densities."""
