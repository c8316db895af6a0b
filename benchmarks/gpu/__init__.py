"""Build, tests, compute-sanitizer and benchmark tables on a GPU: ``python -m benchmarks.gpu``."""
