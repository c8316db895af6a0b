"""Times of meta-steps, by method, network and engine, against plain autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta.learners import MetaLearner
from fastmeta.tasks import TaskBatch
from fastmeta.train import ConfigError, TrainConfig, configure
from fastmeta.train.builders import build_learner, build_module, check_learner, prepare
from fastmeta.train.progress import Progress
from fastmeta.train.sources import task_source
from fastmeta.tuning.floor import matrix_product, products
from fastmeta.tuning.memory import peak_bytes
from fastmeta.tuning.timing import medians

PLAIN = "plain autograd"


@dataclass(frozen=True)
class Timing:
    """The cost of a meta-step.

    Attributes:
        method: of fastmeta, or of plain autograd.
        network: its backbone.
        engine: that ran the tasks, or `PLAIN`.
        seconds: median.
        tasks_per_second: tasks of a meta-batch over `seconds`.
        speedup: how many times faster than plain autograd of the same order.
        floor: seconds of matrix products with as many multiplications as plain autograd's
            convolutions and matrix products; methods that reduce their number can be faster.
        peak_bytes: allocated by torch, at most.
    """

    method: str
    network: str
    engine: str
    seconds: float
    tasks_per_second: float
    speedup: float
    floor: float
    peak_bytes: int


@dataclass(frozen=True)
class Benchmark:
    """Timings on one machine.

    Attributes:
        settings: dataset, sizes and device.
        rows: the timings.
        unsuitable: why other combinations cannot be run.
    """

    settings: Mapping[str, Any]
    rows: Sequence[Timing]
    unsuitable: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        rows = [asdict(row) for row in self.rows]
        return {**self.settings, "rows": rows, "unsuitable": dict(self.unsuitable)}

    def __str__(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        titles = ("ms", "tasks/s", "speed", "floor", "MB")
        lines = [settings, "", _line("method", "network", "engine", *titles)]
        for row in self.rows:
            numbers = (f"{1e3 * row.seconds:.2f}", f"{row.tasks_per_second:.0f}")
            speeds = (f"{row.speedup:.2f}x", f"{row.floor / row.seconds:.2f}")
            more = (*speeds, f"{row.peak_bytes / 1e6:.1f}")
            lines.append(_line(row.method, row.network, row.engine, *numbers, *more))
        lines += [f"  not run: {case}: {why}" for case, why in self.unsuitable.items()]
        return "\n".join(lines)


def bench(
    options: Mapping[str, Any],
    methods: Sequence[str],
    networks: Sequence[str] = (),
    engines: Sequence[str] = ("auto",),
    rounds: int = 9,
    *,
    quiet: bool = True,
) -> Benchmark:
    """Times meta-steps on the training tasks of a configuration.

    All cases run in every round, so that a change of the machine's speed affects all alike. Plain
    autograd is a loop over the tasks with `torch.autograd.grad` and `torch.func.functional_call`:
    MAML for methods with second derivatives, else first-order MAML.

    Args:
        options: of [`fastmeta.train.configure`][], such as `dataset`, `ways` or `device`.
        methods: names of methods.
        networks: names of backbones; by default that of the dataset.
        engines: names of engines.
        rounds: how often each case is timed.
        quiet: whether to show no progress.

    Raises:
        ConfigError: if an option is invalid, or no combination can be run.
    """
    first = configure(options, {"method": methods[0]})
    device = prepare(first)
    batch = task_source(first, "train", device)[0]
    cases: dict[tuple[str, str, str], Callable[[], object]] = {}
    orders: dict[tuple[str, str, str], tuple[str, str, str]] = {}
    unsuitable: dict[str, str] = {}
    for network, method, engine in product(networks or [first.backbone], methods, engines):
        try:
            config = configure(options, {"method": method, "backbone": network, "engine": engine})
            source = task_source(config, "train", device)
            learner = build_learner(config, build_module(config, source, device))
            check_learner(config, learner, source)
        except ConfigError as error:
            unsuitable[f"{method}, {network}, {engine}"] = str(error)
            continue
        key = (method, network, engine)
        cases[key] = partial(learner.step, batch)
        second = learner.metagrad.second_order
        orders[key] = ("maml" if second else "fomaml", network, PLAIN)
        if orders[key] not in cases:
            module = build_module(config, source, device)
            cases[orders[key]] = _plain_step(module, learner, config, batch, second)
    if not cases:
        raise ConfigError(f"nothing to time: {'; '.join(unsuitable.values())}")
    with Progress("peak memory", quiet=quiet):
        peaks = {key: peak_bytes(run, device) for key, run in cases.items()}
        floors = {key: products(cases[key]) for key in {*orders.values()}}
    product_ = ("", "", "matrix product")
    timed = {**cases, product_: matrix_product(device)}
    seconds = medians(timed, device, rounds, what="timing meta-steps", quiet=quiet)
    rows = []
    for key in sorted(cases, key=lambda key: (key[1], key[2] != PLAIN)):
        plain = orders.get(key, key)
        time, floor = seconds[key], floors[plain] * seconds[product_]
        speedup = seconds[plain] / time
        rows.append(Timing(*key, time, len(batch) / time, speedup, floor, peaks[key]))
    threads = f"{torch.get_num_threads()} threads"
    settings = {
        "dataset": first.dataset,
        **{name: getattr(first, name) for name in ("ways", "shots", "meta_batch", "inner_steps")},
        "device": f"{device} ({threads})" if device.type == "cpu" else str(device),
    }
    return Benchmark(settings, rows, unsuitable)


def _plain_step(
    module: nn.Module, learner: MetaLearner, config: TrainConfig, batch: TaskBatch, second: bool
) -> Callable[[], None]:
    """A meta-step of MAML or first-order MAML in plain PyTorch."""
    names = [name for name, _ in module.named_parameters()]
    start = [*module.parameters()]
    optimizer = torch.optim.Adam(start, lr=config.lr)

    def loss(params: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return learner.loss(functional_call(module, dict(zip(names, params, strict=True)), x), y)

    def step() -> None:
        total = [torch.zeros_like(param) for param in start]
        for task in batch:
            fast: Sequence[Tensor] = start
            for _ in range(config.inner_steps):
                value = loss(fast, task.support_x, task.support_y)
                grads = torch.autograd.grad(value, fast, create_graph=second)
                fast = [p - config.inner_lr * g for p, g in zip(fast, grads, strict=True)]
            value = loss(fast, task.query_x, task.query_y)
            for sum_, grad in zip(
                total, torch.autograd.grad(value, start if second else fast), strict=True
            ):
                sum_ += grad
        for param, sum_ in zip(start, total, strict=True):
            param.grad = sum_ / len(batch)
        optimizer.step()

    return step


def _line(method: str, network: str, engine: str, *numbers: str) -> str:
    return f"  {method:<12}{network:<12}{engine:<16}" + "".join(f"{n:>10}" for n in numbers)
