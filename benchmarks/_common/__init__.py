"""Helpers shared by the benchmarks: timing, peak memory, random batches, compositions in torch."""
