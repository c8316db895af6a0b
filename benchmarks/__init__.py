"""Benchmarks and studies; ``benchmarks/README.md`` lists them."""
