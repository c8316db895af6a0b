"""Measured and predicted communication costs: ``python -m benchmarks.scaling``."""
