"""The kinds of runs: learners, a user's own loop, multi-task learning, the command line."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from frozen.package import CoLearner, GSLOptimizer, aggregate, build, command_line
from frozen.problems import INNER_LR, INNER_STEPS, META_STEPS, TASKS, WAYS, Trace, network, tasks
from torch import Tensor, nn
from torch.func import functional_call


class UnsuitableError(Exception):
    """The engine asked for does not support the case."""


def absolute_sum(x: Tensor) -> Tensor:
    return x.abs().sum()


def sgd(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1)


def learner(
    method: str,
    on: str,
    engine: str = "auto",
    *,
    bad: int | None = None,
    gamma: float | None = None,
    heads: tuple[str, ...] = ("main",),
    optimizer: Callable[..., torch.optim.Optimizer] = sgd,
    of: dict[str, Any] | None = None,
    **options: Any,
) -> Trace:
    """Meta-steps of a learner, then predictions; ``of`` holds the options of its network."""
    trace, module, learned = Trace(), network(on, **(of or {})), []

    def captured(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        learned.extend(params)
        return optimizer(learned)

    if method == "cml" or gamma is not None:
        width = sum(p.shape[1] for p in module.head.parameters() if p.dim() == 2)
        head = nn.Sequential(nn.Linear(width, 5), nn.ReLU(), nn.Linear(5, WAYS))
        options["co_learner"] = CoLearner(head, "features", 1.0 if gamma is None else gamma)
    made = build(
        method,
        module,
        F.cross_entropy,
        **{"inner_lr": INNER_LR, "inner_steps": INNER_STEPS, **options},
        engine=engine,
        optimizer=captured,
    )
    for step in range(META_STEPS):
        try:
            seen = made.step(tasks(on, step, bad if step == 1 else None))
        except (ValueError, NotImplementedError) as error:
            if engine == "loop" or step > 0:
                raise
            raise UnsuitableError from error
        trace.add([seen.query_loss], torch.nansum)
        trace.add([seen.support_loss, seen.query_output])
        trace.add([p.grad for p in learned], torch.linalg.norm)
        trace.add([*learned, *module.buffers()])
    trace.add(learned, torch.linalg.norm, absolute_sum)
    batch = tasks(on, META_STEPS)
    trace.add([made.predict(batch, steps=3, head=head) for head in heads], torch.linalg.norm)
    return trace


def user_loop(
    route: str = "support", base: Callable[..., Any] = torch.optim.SGD, **rule: Any
) -> Trace:
    """A FOMAML loop of the user's around ``GSLOptimizer``, with two parameter groups."""
    trace, module = Trace(), network("mlp")
    groups = [{"params": list(part.parameters())} for part in module.children()]
    groups[1]["lr"] = 0.03
    optimizer = GSLOptimizer(groups, base=base, lr=0.1, **rule)
    params = dict(module.named_parameters())

    def loss(fast: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(module, fast, (x,)), y)

    for step in range(META_STEPS):
        optimizer.zero_grad()
        losses = []
        for task in tasks("mlp", step):
            with optimizer.task(scale=1 / TASKS) as recorder:
                fast = dict(params)
                for _ in range(INNER_STEPS):
                    value = loss(fast, task.support_x, task.support_y)
                    if route == "record":
                        with recorder.record():
                            value.backward()
                            grads = [p.grad.clone() for p in params.values()]
                    elif route == "inner gradients":
                        grads = recorder.inner_gradients(value, fast.values())
                    else:
                        grads = torch.autograd.grad(value, list(fast.values()))
                    if route == "support":
                        recorder.support(grads)
                    pairs = zip(fast.items(), grads, strict=True)
                    fast = {name: p - INNER_LR * g for (name, p), g in pairs}
                if route == "adapted":
                    recorder.adapted(list(fast.values()), INNER_LR, INNER_STEPS)
                losses.append(loss(fast, task.query_x, task.query_y))
                (losses[-1] / TASKS).backward()
        trace.add(losses, torch.sum)
        trace.add([p.grad for p in params.values()], torch.linalg.norm)
        optimizer.step()
    trace.add(params.values(), torch.linalg.norm, absolute_sum)
    return trace


def multitask(method: str, **options: Any) -> Trace:
    """Steps of multi-task learning by ``fastmeta.aggregate``."""
    trace, module = Trace(), network("mlp")
    params = list(module.parameters())
    optimizer = sgd(params)
    for step in range(META_STEPS):
        losses = [F.cross_entropy(module(t.query_x), t.query_y) for t in tasks("mlp", step)]
        optimizer.zero_grad()
        weights = aggregate(losses, params, method, **options)
        trace.add([*losses, weights], torch.sum)
        trace.add([p.grad for p in params], torch.linalg.norm)
        optimizer.step()
    trace.add(params, torch.linalg.norm, absolute_sum)
    return trace


def program(*flags: str) -> Trace:
    """``fastmeta train`` and ``evaluate``: results, log, and the tensors of the last checkpoint."""
    trace = Trace()
    counts = {"steps": 20, "meta-batch": 4, "checkpoint-every": 10, "val-every": 10, "log-every": 5}
    counts |= {"val-tasks": 6, "test-tasks": 8, "untrained-inner-steps": 3, "threads": 1}
    sizes = [text for name, count in counts.items() for text in (f"--{name}", str(count))]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        run, tested = Path(folder, "run"), Path(folder, "tested.json")
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        for command in (
            ["train", *sizes, "--no-plots", "--out", str(run), *flags],
            ["evaluate", str(run), "--test-tasks", "10", "--json", str(tested)],
        ):
            if command_line(command) != 0:
                raise RuntimeError(f"fastmeta {' '.join(command)} failed")
        for path in (run / "results.json", tested):
            trace.add([torch.tensor(list(scores(json.loads(path.read_text()))))], torch.sum)
        with (run / "log.csv").open() as file:
            for row in csv.DictReader(file):
                del row["tasks_per_second"], row["seconds"]
                trace.digest.update(",".join(row.values()).encode())
        last = max(run.glob("step-*.pt"))
        state = torch.load(io.BytesIO(last.read_bytes()), weights_only=True)["learner"]
    found = {tuple(t.flatten().tolist()): t for t in tensors_in(state)}  # by value, not by name
    trace.add([found[values] for values in sorted(found)], torch.linalg.norm, absolute_sum)
    return trace


def scores(results: dict[str, Any]) -> Iterator[float]:
    """The means and intervals of every test."""
    for _, part in sorted(results.items()):
        if isinstance(part, dict) and "mean" in part:
            yield from (part["mean"], part["ci95"])


def tensors_in(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor) and state.is_floating_point():
        yield state
    elif isinstance(state, dict):
        yield from (t for part in state.values() for t in tensors_in(part))
    elif isinstance(state, list | tuple):
        yield from (t for part in state for t in tensors_in(part))
