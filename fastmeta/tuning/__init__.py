"""Timing on the user's machine: benchmarks, and tuning of Lambda patterns.

`tune_pattern` finds the fastest choice of adapted layers that is good enough.
"""

from fastmeta.tuning.bench import Benchmark, Timing, bench
from fastmeta.tuning.cost import CostModel, measure_cost
from fastmeta.tuning.run import tune_run
from fastmeta.tuning.search import Trial, TunedPattern, layer_names, tune_pattern, with_pattern

__all__ = [
    "Benchmark",
    "CostModel",
    "Timing",
    "Trial",
    "TunedPattern",
    "bench",
    "layer_names",
    "measure_cost",
    "tune_pattern",
    "tune_run",
    "with_pattern",
]
