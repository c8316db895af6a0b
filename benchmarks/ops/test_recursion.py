"""``Recursion`` (a reverse sweep over the inner steps) against ``Exact`` (backpropagation).

Guards the goals of ``Recursion``: at most 1.1x the time of ``Exact`` at one inner step, and from 5
to 50 inner steps at most 15 % more memory beyond the stored fast weights. Run with
``pytest benchmarks/ops/test_recursion.py -s``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from benchmarks._common.batches import image_batch
from benchmarks._common.memory import peak_bytes
from benchmarks._common.timing import interleaved, report
from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, Adam, Adaptation
from fastmeta.aggregation import Mean
from fastmeta.metagrad import Exact, MetaGradient, Recursion
from fastmeta.models import MLP, Conv4

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
METAGRADS: dict[str, Callable[[], MetaGradient]] = {
    "exact": Exact,
    "recursion": Recursion,
    "recursion, no graph kept": lambda: Recursion(graphs=0),
    "recursion, forward": lambda: Recursion("forward"),
}
INNER: dict[str, Callable[[int], Adaptation]] = {
    "sgd": lambda steps: SGD(0.01, steps),
    "momentum": lambda steps: SGD(0.01, steps, momentum=0.9),
    "adam": lambda steps: Adam(0.01, steps, eps=1e-3),
}


def squared_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``mse_loss``, written with ops that have forward-mode derivatives."""
    return (output - target).square().mean()


def sine(tasks: int = 4) -> tuple[torch.nn.Module, Callable, TaskBatch]:
    parts = [torch.randn(tasks, 10, 1) for _ in range(4)]
    return MLP(1, 1), squared_error, TaskBatch(*parts)


def omniglot(tasks: int = 4) -> tuple[torch.nn.Module, Callable, TaskBatch]:
    """5-way 1-shot with 15 query images per class."""
    return Conv4(1, 28, 5, downsample="stride"), F.cross_entropy, image_batch(tasks, queries=15)


CASES = {"sine MLP": sine, "Omniglot Conv4-64": omniglot}


def learners(case: str, inner: str, steps: int, tasks: int) -> tuple[dict, TaskBatch]:
    """One learner per meta-gradient, all with the same initial weights."""
    module, loss, batch = CASES[case](tasks)
    made = {
        name: MetaLearner(
            copy.deepcopy(module).to(DEVICE),
            loss,
            adaptation=INNER[inner](steps),
            metagrad=metagrad(),
            aggregation=Mean(),
        )
        for name, metagrad in METAGRADS.items()
    }
    return made, batch.to(DEVICE)


def timed(learner: MetaLearner, batch: TaskBatch) -> Callable[[], object]:
    def run() -> None:
        learner.step(batch)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return run


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("case", CASES)
def test_step(benchmark, case: str, steps: int) -> None:
    made, batch = learners(case, "sgd", steps, tasks=4)
    found = [learner.meta_gradient(batch)[0] for learner in made.values()]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-3 * found[0].abs().max())

    timings = interleaved({name: timed(m, batch) for name, m in made.items()}, seconds=6)
    peaks = {name: peak_bytes(timed(m, batch), DEVICE) for name, m in made.items()}
    notes = "\n".join(
        f"{name:<34}{peak / 1e6:>10.2f} MB{peak / peaks['exact']:>41.2f}"
        for name, peak in peaks.items()
    )
    title = f"{case}, 4 tasks, {steps} inner steps, {DEVICE}"
    report(title, timings, "exact", f"peak memory of the step\n{notes}")
    ratios = {name: t.median / timings["exact"].median for name, t in timings.items()}
    benchmark.extra_info.update(time=ratios, bytes=peaks)
    benchmark.pedantic(timed(made["recursion"], batch), rounds=3, warmup_rounds=1)
    if steps == 1:
        assert ratios["recursion"] <= 1.1


@pytest.mark.parametrize("inner", INNER)
def test_memory(benchmark, inner: str) -> None:
    """Omniglot, 5 to 50 inner steps; each step of Adam also stores a gradient and both moments."""
    copies = {"sgd": 1, "momentum": 1, "adam": 4}[inner]
    peaks: dict[tuple[str, int], int] = {}
    size = 0
    for steps in (1, 5, 50):
        made, batch = learners("Omniglot Conv4-64", inner, steps, tasks=1)
        size = sum(p.nbytes for p in made["exact"].module.parameters())
        for name, learner in made.items():
            peaks[name, steps] = peak_bytes(timed(learner, batch), DEVICE)
    print(f"\nOmniglot Conv4-64, {inner}, peak memory of a step in MB ({DEVICE})")
    print(f"{'inner steps':<34}{1:>10}{5:>10}{50:>10}{'50, without stored':>22}{'against 5':>12}")
    for name in METAGRADS:
        row = [peaks[name, steps] for steps in (1, 5, 50)]
        bare = [peaks[name, steps] - steps * copies * size for steps in (5, 50)]
        growth = (
            f"{bare[1] / bare[0] - 1:+.1%}" if name != "exact" else f"{row[2] / row[1] - 1:+.0%}"
        )
        print(f"{name:<34}" + "".join(f"{r / 1e6:>10.1f}" for r in row), end="")
        print(f"{bare[1] / 1e6:>22.1f}{growth:>12}")
        if name != "exact":
            assert bare[1] <= 1.15 * bare[0]
    benchmark.extra_info.update({f"{name} {steps}": b for (name, steps), b in peaks.items()})
    benchmark.pedantic(timed(made["recursion"], batch), rounds=1)
