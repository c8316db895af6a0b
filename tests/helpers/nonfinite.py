"""Meta-batches with non-finite tasks, and learners that meet them."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastmeta import MetaLearner, TaskBatch
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import FirstOrder


def corrupt(batch: TaskBatch, task: int, split: str = "support", value: float = torch.nan):
    """The meta-batch with ``value`` as the first number of the inputs of one task."""
    found = batch.map(lambda t: t.clone())
    getattr(found, f"{split}_x")[task, ..., 0] = value
    return found


def without(batch: TaskBatch, *gone: int) -> TaskBatch:
    kept = [i for i in range(len(batch)) if i not in gone]
    return batch.map(lambda t: t[kept])


def learner_of(module: nn.Module, policy: Any = "skip", **components: Any) -> MetaLearner:
    components = {
        "adaptation": SGD(0.3, 2),
        "metagrad": FirstOrder(),
        "aggregation": Mean(),
        **components,
    }
    return MetaLearner(copy.deepcopy(module), F.cross_entropy, non_finite=policy, **components)
