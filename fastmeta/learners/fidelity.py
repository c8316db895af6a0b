"""How near a learner's meta-gradient is to the exact one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.aggregation import Aggregation, Mean
from fastmeta.engines import Rows
from fastmeta.functional import FunctionalModule
from fastmeta.learners.containment import Containment
from fastmeta.learners.learner import MetaLearner
from fastmeta.metagrad import Exact, MetaGradient
from fastmeta.tasks import TaskBatch


@dataclass(frozen=True)
class Fidelity:
    """A meta-gradient beside the exact one; detached tensors on the device.

    Attributes:
        cosine: of the combined meta-gradient with the mean exact one, a scalar.
        length: of the combined meta-gradient, as a multiple of the mean exact one's.
        task_cosine: ``(T,)``, of each task's meta-gradient with its exact one.
        task_length: ``(T,)``, the same of the lengths.
    """

    cosine: Tensor
    length: Tensor
    task_cosine: Tensor
    task_length: Tensor


def against_exact(learner: MetaLearner, batch: TaskBatch) -> Fidelity:
    """Compares the meta-gradient of the learner's next step with MAML's, Finn et al. 2017, eq. 1.

    Both are of the trainable parameters alone (a co-learner's, too), without learned rates, and see
    the same random numbers. Nothing of the learner changes, its meta-gradient's state, buffers and
    torch's generators included.

    Args:
        learner: any combination of the rooms.
        batch: the tasks.

    Raises:
        ValueError: if the meta-batch is empty, or the learner's engine cannot run it.
    """
    own, combined = _rows(
        learner, batch, copy.deepcopy(learner.metagrad), copy.deepcopy(learner.aggregation)
    )
    exact, mean = _rows(learner, batch, Exact(), Mean())
    return Fidelity(*_compare(combined, mean), *_compare(own, exact))


def _compare(own: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    lengths = own.norm(dim=-1) / exact.norm(dim=-1)
    return F.cosine_similarity(own, exact, dim=-1), lengths


def _rows(
    learner: MetaLearner, batch: TaskBatch, metagrad: MetaGradient, aggregation: Aggregation
) -> tuple[Tensor, Tensor]:
    """The tasks' meta-gradients ``(T, P)`` and what they are combined to, ``(P,)``."""
    model = learner._model
    twin = copy.copy(learner)
    twin.metagrad, twin.aggregation = metagrad, aggregation
    twin._rows = Rows.of(learner._learned)
    twin.containment = Containment()
    if metagrad.second_order:
        twin._model = type(model)(  # without checkpoints
            learner.module, model.autocast, co_learner=learner.co_learner
        )
    size = sum(p.numel() for p in model.params)
    with _untouched(model, model.params[0].device):
        found, _ = twin._task_rows(batch)
        return found.meta()[:, :size], found.combine(aggregation.weights(found))[:size]


@contextmanager
def _untouched(model: FunctionalModule, device: torch.device) -> Iterator[None]:
    """Afterwards buffers and torch's generators are as before."""
    buffers = [(buffer, buffer.clone()) for _, buffer in model.named_buffers()]
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
