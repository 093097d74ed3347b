"""Neurons as data, without a model: layouts, values, and masks."""
