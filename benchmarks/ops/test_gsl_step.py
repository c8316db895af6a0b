"""Cost of the GSL correction: meta-steps of GSL against those of FOMAML and MAML.

Guards the goal of at most 1.05x FOMAML. Run with ``pytest benchmarks/ops/test_gsl_step.py -s``.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks._common.batches import image_batch
from benchmarks._common.timing import interleaved, report
from fastmeta.learners import MetaLearner, build
from fastmeta.models import Conv4

GOAL = 1.05


def learner(method: str, **options: object) -> MetaLearner:
    torch.manual_seed(0)
    module = Conv4(1, 28, 5, downsample="stride")
    return build(method, module, F.cross_entropy, inner_lr=0.4, **options)


@pytest.mark.parametrize(("tasks", "steps"), [(4, 1), (16, 1), (4, 5)], ids=lambda v: str(v))
def test_gsl_step(benchmark, tasks: int, steps: int) -> None:
    batch = image_batch(tasks, queries=5)
    learners = {
        "FOMAML": learner("fomaml", inner_steps=steps),
        "GSL": learner("gsl", inner_steps=steps),
        "GSL per layer": learner("gsl", inner_steps=steps, scope="layer"),
        "MAML": learner("maml", inner_steps=steps),
    }
    timings = interleaved(
        {name: lambda one=one: one.step(batch) for name, one in learners.items()},
        seconds=20,
        min_rounds=21,
    )
    ratio = timings["GSL"].median / timings["FOMAML"].median
    report(f"one meta-step, Conv4-64, 5-way 1-shot, T={tasks}, K={steps}", timings, "FOMAML")
    benchmark.extra_info.update(gsl_over_fomaml=ratio)
    benchmark.pedantic(learners["GSL"].step, (batch,), rounds=9, warmup_rounds=1)
    assert ratio <= GOAL
