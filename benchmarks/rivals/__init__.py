"""Comparison with other meta-learning libraries; see ``README.md``."""
