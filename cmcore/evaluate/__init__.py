"""Measures of sample quality, and the records that carry them with their provenance."""
