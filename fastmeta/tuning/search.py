"""Search for a Lambda pattern."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import product

from fastmeta.adaptation import LayerPattern
from fastmeta.data import TaskSource
from fastmeta.evaluation import ACCURACY, Estimate, Metric, evaluate
from fastmeta.evaluation.scores import evaluation_mode
from fastmeta.learners import MetaLearner
from fastmeta.tasks import Task
from fastmeta.train.progress import Progress
from fastmeta.tuning.cost import measure_cost
from fastmeta.tuning.timing import medians

_EXHAUSTIVE = 6  # layers: 63 patterns
_ROUNDING = 1e-4  # percent; scores of tasks are float32


@dataclass(frozen=True)
class Trial:
    """A pattern that was evaluated.

    Attributes:
        pattern: bits, one per layer.
        score: on the query sets of the tasks.
        seconds: to adapt to one task, median.
    """

    pattern: str
    score: Estimate
    seconds: float


@dataclass(frozen=True)
class TunedPattern:
    """The outcome of a search.

    Attributes:
        steps: inner steps.
        layers: names of the layers.
        trials: all that were evaluated, the fastest first.
        front: those with a better score than all faster ones (the Pareto front).
        full: the one that adapts all layers.
        chosen: the fastest that is good enough.
        best: the one with the best score.
    """

    steps: int
    layers: tuple[str, ...]
    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]
    full: Trial
    chosen: Trial
    best: Trial


def tune_pattern(
    learner: MetaLearner,
    source: TaskSource,
    tasks: int,
    steps: int,
    allowed_loss: float = 1.0,
    metric: Metric = ACCURACY,
    *,
    quiet: bool = True,
) -> TunedPattern:
    """The fastest pattern that is good enough, for a trained learner at test time.

    Our reconstruction of Khabarlak 2022 (arXiv 2206.05930): the fastest one whose score on
    validation tasks is at most `allowed_loss` worse than that of all layers. Up to six layers all
    patterns are evaluated. With more, layers are removed one by one: in each round the one without
    which the pattern is still good enough and, as predicted by
    [`fastmeta.tuning.CostModel`][], fastest.

    As the pattern is selected on these tasks, its score on them is optimistic: report it on others.

    Args:
        learner: trained; its own pattern, if any, is ignored. It is not modified.
        source: of validation tasks; the first ones decide the score, the next one is timed.
        tasks: how many decide the score, at least 2.
        steps: inner steps, at least 1.
        allowed_loss: in percent of all queries for an accuracy, of the error for `"mse"`.
        metric: the score of a task's query outputs.
        quiet: whether to show no progress.

    Raises:
        ValueError: if a number is too small.
    """
    if tasks < 2 or steps < 1 or not allowed_loss >= 0:
        raise ValueError(
            "expected at least 2 tasks, 1 inner step and an allowed loss that is not negative; got "
            f"{tasks}, {steps} and {allowed_loss}."
        )
    patterned = cache(partial(with_pattern, learner))
    layers = layer_names(learner)
    everything = "1" * len(layers)
    task = _task_after(source, tasks)

    def adapt(bits: str, count: int) -> None:
        patterned(bits).adapt(task.support_x, task.support_y, count)

    @cache
    def score(bits: str) -> Estimate:
        found = evaluate(patterned(bits), source, count=tasks, metric=metric, steps=steps)
        progress.advance()
        return found.estimate

    def good(bits: str) -> bool:
        return metric.loss(score(bits).mean, score(everything).mean) <= allowed_loss + _ROUNDING

    device = next(learner.module.parameters()).device
    exhaustive = len(layers) <= _EXHAUSTIVE
    what, total = f"patterns, {steps} inner steps", 2 ** len(layers) - 1 if exhaustive else None
    with evaluation_mode(learner.module):
        if not exhaustive:
            cost = measure_cost(adapt, len(layers), steps, device, quiet=quiet)
        with Progress(what, total, unit="pattern", quiet=quiet, announce=True) as progress:
            if exhaustive:
                tried = ["".join(bits) for bits in product("01", repeat=len(layers))][1:]
            else:
                tried = _remove_layers(everything, good, partial(cost.predict, steps=steps))
            for bits in tried:
                score(bits)
        runs = {bits: partial(adapt, bits, steps) for bits in tried}
        seconds = medians(runs, device, what=f"timing {what}", quiet=quiet)
    trials = [
        Trial(bits, score(bits), seconds[bits]) for bits in sorted(tried, key=seconds.__getitem__)
    ]
    front: list[Trial] = []
    for trial in trials:
        if not front or metric.better(trial.score.mean, front[-1].score.mean):
            front.append(trial)
    return TunedPattern(
        steps,
        layers,
        tuple(trials),
        tuple(front),
        full=next(t for t in trials if t.pattern == everything),
        chosen=next(t for t in trials if good(t.pattern)),
        best=front[-1],
    )


def with_pattern(learner: MetaLearner, pattern: str) -> MetaLearner:
    """The learner with an inner loop that adapts some layers only.

    See [`fastmeta.adaptation.LayerPattern`][].

    Raises:
        ValueError: if the pattern does not fit the network.
    """
    inner = learner.adaptation
    return learner.with_components(
        adaptation=LayerPattern(inner.inner if isinstance(inner, LayerPattern) else inner, pattern)
    )


def layer_names(learner: MetaLearner) -> tuple[str, ...]:
    """The names of the layers of a learner's network, one for each bit of a pattern."""
    adaptation = with_pattern(learner, "full").adaptation
    assert isinstance(adaptation, LayerPattern)
    return tuple(layer.name for layer in adaptation.layers)


def _task_after(source: TaskSource, tasks: int) -> Task:
    """A task of the first meta-batch after `tasks` tasks."""
    count = i = 0
    while count < tasks:
        count += len(source[i])
        i += 1
    return source[i][0]


def _remove_layers(
    pattern: str, good: Callable[[str], bool], cost: Callable[[str], float]
) -> list[str]:
    """`pattern`, and all that were evaluated while removing its layers one by one."""
    tried = [pattern]
    while pattern.count("1") > 1:
        bits = [k for k, bit in enumerate(pattern) if bit == "1"]
        fewer = [f"{pattern[:k]}0{pattern[k + 1 :]}" for k in bits]
        tried += fewer
        enough = [p for p in fewer if good(p)]
        if not enough:
            break
        pattern = min(enough, key=cost)
    return tried
