"""The search for a layer pattern, with given times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD, Adaptation, LayerPattern, MetaSGD
from fastmeta.aggregation import Mean
from fastmeta.evaluation import ACCURACY, MSE
from fastmeta.metagrad import FirstOrder
from fastmeta.models import MLP
from fastmeta.tuning import TunedPattern, cost, layer_names, search, tune_pattern, with_pattern
from tests.helpers.problems import WAYS, tasks

LAYERS = 3
PATTERNS = ["".join(bits) for bits in product("01", repeat=LAYERS)][1:]


class Source:
    """Meta-batches of four tasks, and a record of which were requested."""

    ways = WAYS

    def __init__(self) -> None:
        self.batches = [tasks(4, torch.float32) for _ in range(4)]
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> TaskBatch:
        self.asked.append(index)
        return self.batches[index]


def learner(layers: int = LAYERS, adaptation: Adaptation | None = None) -> MetaLearner:
    return MetaLearner(
        MLP(16, WAYS, (6,) * (layers - 1)),
        F.cross_entropy,
        adaptation=adaptation or SGD(0.5, 2),
        metagrad=FirstOrder(),
        aggregation=Mean(),
    )


def bits_of(run: Any) -> str:
    return run.args[0]


def invented(seconds: Callable[[str], float]) -> Callable[..., dict[Any, float]]:
    """Given times per pattern instead of a clock; everything still runs."""

    def medians(runs: Mapping[Any, Any], device: torch.device, **_: Any) -> dict[Any, float]:
        for run in runs.values():
            run()
        return {key: seconds(bits_of(run)) for key, run in runs.items()}

    return medians


def tuned(model: MetaLearner, source: Source, *args: Any, seconds: Any, **rest: Any) -> Any:
    fake = invented(seconds)
    with mock.patch.object(search, "medians", fake), mock.patch.object(cost, "medians", fake):
        return tune_pattern(model, source, *args, **rest)


def score(model: MetaLearner, pattern: str, source: Source, count: int, steps: int) -> float:
    """The mean accuracy over the first tasks."""
    other = with_pattern(model, pattern)
    hits = []
    for batch in source.batches:
        found = other.predict(batch, steps).argmax(-1) == batch.query_y
        hits += list(found.float().mean(1))
    return torch.stack(hits[:count]).mean().item()


@pytest.mark.parametrize("allowed", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("steps", [1, 3])
def test_chosen_patterns(steps: int, allowed: float) -> None:
    model, source = learner(), Source()
    times = dict(zip(PATTERNS, torch.rand(len(PATTERNS)).tolist(), strict=True))
    found: TunedPattern = tuned(model, source, 6, steps, allowed, seconds=times.__getitem__)
    scores = {p: score(model, p, source, 6, steps) for p in PATTERNS}

    assert [t.pattern for t in found.trials] == sorted(PATTERNS, key=times.__getitem__)
    for trial in found.trials:
        assert trial.seconds == times[trial.pattern]
        assert trial.score.mean == pytest.approx(scores[trial.pattern])
        assert trial.score.tasks == 6
    good = [p for p in PATTERNS if 100 * (scores["111"] - scores[p]) <= allowed + 1e-4]
    assert found.full.pattern == "111"
    assert found.chosen.pattern == min(good, key=times.__getitem__)
    assert scores[found.best.pattern] == pytest.approx(max(scores.values()))
    for trial in found.trials:
        faster = [t for t in found.trials if t.seconds < trial.seconds]
        wins = all(trial.score.mean > t.score.mean for t in faster)
        assert (trial in found.front) == wins
    assert found.layers == ("layers.1", "layers.3", "layers.5")
    assert found.steps == steps


@pytest.mark.parametrize(("count", "batches"), [(6, 2), (8, 2), (9, 3)])
def test_the_timed_task_is_not_scored(count: int, batches: int) -> None:
    model, source = learner(), Source()
    with mock.patch.object(MetaLearner, "adapt") as adapt:
        tuned(model, source, count, 2, seconds=len)
    assert set(source.asked) == set(range(batches + 1))
    timed = source.batches[batches][0]
    assert adapt.call_count == len(PATTERNS)
    for call in adapt.call_args_list:
        x, y, steps = call.args
        assert torch.equal(x, timed.support_x)
        assert torch.equal(y, timed.support_y)
        assert steps == 2


def test_many_layers_are_removed_one_by_one() -> None:
    model, source = learner(8), Source()

    def seconds(bits: str) -> float:
        return sum(2.0**k for k, bit in enumerate(bits) if bit == "1")

    every: TunedPattern = tuned(model, source, 4, 2, 100.0, seconds=seconds)
    # Any loss is allowed: layers are removed by cost, the last one first.
    path = ["1" * k + "0" * (8 - k) for k in range(8, 0, -1)]
    tried = {t.pattern for t in every.trials}
    assert set(path) <= tried
    assert len(tried) == 1 + sum(range(2, 9))
    assert every.chosen.pattern == "10000000"
    one: TunedPattern = tuned(model, source, 4, 2, 0.0, seconds=seconds)
    full = score(model, "1" * 8, source, 4, 2)
    assert score(model, one.chosen.pattern, source, 4, 2) >= full - 1e-6


def test_the_learner_is_unchanged() -> None:
    model, source = learner(), Source()
    before = {name: p.clone() for name, p in model.module.state_dict().items()}
    rule = model.adaptation
    tuned(model, source, 4, 2, seconds=len)
    assert model.adaptation is rule
    assert model.module.training
    assert all(torch.equal(p, before[name]) for name, p in model.module.state_dict().items())


def test_the_inner_loop_of_a_pattern() -> None:
    rates = MetaSGD(0.3, 2)
    model = learner(adaptation=rates)
    other = with_pattern(model, "head")
    assert other.module is model.module
    assert isinstance(other.adaptation, LayerPattern)
    assert other.adaptation.inner is rates
    assert all(a is b for a, b in zip(other.adaptation.rates, rates.rates, strict=True))
    again = with_pattern(other, "body")
    assert again.adaptation.inner is rates
    assert layer_names(other) == layer_names(model)
    with pytest.raises(ValueError, match="'01' has 2 bits, but the network has 3 layers"):
        with_pattern(model, "01")


def test_losses() -> None:
    assert ACCURACY.loss(0.90, 0.92) == pytest.approx(2.0)
    assert MSE.loss(1.1, 1.0) == pytest.approx(10.0)
    assert MSE.loss(0.9, 1.0) == pytest.approx(-10.0)


@pytest.mark.parametrize(("count", "steps", "allowed"), [(1, 2, 1.0), (4, 0, 1.0), (4, 1, -1.0)])
def test_too_small_numbers_are_refused(count: int, steps: int, allowed: float) -> None:
    with pytest.raises(ValueError, match=f"at least 2 tasks.*; got {count}, {steps} and {allowed}"):
        tune_pattern(learner(), Source(), count, steps, allowed)
