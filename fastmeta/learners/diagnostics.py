"""Diagnostics: comparison with the exact meta-gradient, and the descent condition of CML."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.aggregation import Mean
from fastmeta.functional import FunctionalModule
from fastmeta.learners._inference import adapt_to_task
from fastmeta.learners.learner import MetaLearner
from fastmeta.learners.nonfinite import NonFiniteGuard
from fastmeta.metagrad import Exact
from fastmeta.tasks import TaskBatch


@dataclass(frozen=True)
class Fidelity:
    """Comparison of a meta-gradient with the exact one; detached tensors on the device.

    Attributes:
        cosine: of the combined meta-gradient and the mean exact one, a scalar.
        norm_ratio: norm of the combined meta-gradient, divided by that of the mean exact one.
        task_cosine: `(T,)`, of each task's meta-gradient and its exact one.
        task_norm_ratio: `(T,)`, norm of each task's meta-gradient, divided by its exact one's.
    """

    cosine: Tensor
    norm_ratio: Tensor
    task_cosine: Tensor
    task_norm_ratio: Tensor


def compare_with_exact(learner: MetaLearner, batch: TaskBatch) -> Fidelity:
    """Compares the meta-gradient of the learner's next step with MAML's, Finn et al. 2017, eq. 1.

    Both are with respect to the trainable parameters (including a co-learner's) without learned
    rates, and use the same random numbers. The learner does not change, including the state of its
    meta-gradient, buffers and torch's generators.

    Args:
        learner: with any combination of components.
        batch: the tasks.

    Raises:
        ValueError: if the meta-batch is empty, or the learner's engine cannot run it.
    """
    own, combined = _gradients(learner.with_components(), batch)
    exact, mean = _gradients(learner.with_components(metagrad=Exact(), aggregation=Mean()), batch)
    return Fidelity(*_compare(combined, mean), *_compare(own, exact))


def _compare(own: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    norm_ratios = own.norm(dim=-1) / exact.norm(dim=-1)
    return F.cosine_similarity(own, exact, dim=-1), norm_ratios


def _gradients(learner: MetaLearner, batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """The tasks' meta-gradients `(T, P)`, and their combination `(P,)`."""
    learner.non_finite_guard = NonFiniteGuard()  # the learner is a copy
    model = learner._current().spec.model
    size = sum(p.numel() for p in model.params)
    with _preserve_state(model, model.params[0].device):
        found, _ = learner._task_gradients(batch)
        weights = learner.aggregation.weights(found)
        return found.meta()[:, :size], found.combine(weights)[:size]


@contextmanager
def _preserve_state(model: FunctionalModule, device: torch.device) -> Iterator[None]:
    """Restores buffers and torch's generators on exit."""
    buffers = [(buffer, buffer.clone()) for _, buffer in model.named_buffers()]
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)


def descent_condition(learner: MetaLearner, batch: TaskBatch) -> dict[str, Tensor]:
    """The cosine between the query gradients of the main head and the co-learner, per parameter.

    Shin, Han, Kim 2024 (arXiv 2406.04639): if it is positive in every layer of the features, the
    sum of the two gradients is, to first order, a descent direction of the main head's loss.
    Both are computed at the fast weights; the learner does not change.

    Args:
        learner: with a co-learner.
        batch: the tasks.

    Returns:
        `(T,)` for each parameter that both losses depend on, by name.

    Raises:
        ValueError: if the learner has no co-learner.
    """
    if learner.co_learner is None:
        raise ValueError("the learner has no co-learner to compare with; expected one.")
    spec = learner._current().spec
    model = spec.model
    cosines: dict[str, list[Tensor]] = {}
    for task in batch:
        buffers = model.clone_buffers()
        fast = adapt_to_task(spec, task.support_x, task.support_y, buffers, None)
        fast = [p.requires_grad_() for p in fast]
        with torch.enable_grad():
            outputs = model.both(fast, buffers, task.query_x)
            losses = [learner.loss(output, task.query_y) for output in outputs]
        main, co = (
            torch.autograd.grad(loss, fast, retain_graph=True, allow_unused=True) for loss in losses
        )
        for name, a, b in zip(model.names, main, co, strict=True):
            if a is not None and b is not None:
                cosine = F.cosine_similarity(a.flatten(), b.flatten(), 0)
                cosines.setdefault(name, []).append(cosine)
    return {name: torch.stack(tasks) for name, tasks in cosines.items()}
