"""Measures of sample quality, and records of their values with provenance."""
