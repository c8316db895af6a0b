"""Exact meta-gradients through transformers: ``python -m benchmarks.transformers``."""
