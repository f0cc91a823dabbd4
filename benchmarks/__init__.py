"""Measurements of the project: `python -m benchmarks.<name>`, each prints one table."""
