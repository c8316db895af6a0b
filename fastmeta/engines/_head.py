"""The last layer of a network in the support loss, where its gradient has a closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from fastmeta.engines._recognition import loss_name
from fastmeta.engines.base import StepSpec
from fastmeta.functional.head import LinearHead
from fastmeta.metagrad.task_losses import SupportHead
from fastmeta.tasks import Examples

# Loss, outputs and features (or None) for given parameters and head.
EvaluateFeatures = Callable[[LinearHead, Sequence[Tensor]], tuple[Tensor, Tensor, "Tensor | None"]]


class HeadFinder:
    """Finds the closed form of the head in the support losses of one meta-batch.

    Args:
        spec: the module and its loss.
    """

    def __init__(self, spec: StepSpec) -> None:
        chooses = spec.adaptation.support_loss is not None  # not all examples of the task
        self._loss = None if chooses else loss_name(spec.loss)
        self._find = cache(spec.model.find_head)

    def of(self, targets: Examples, evaluate: EvaluateFeatures) -> SupportHead | None:
        """The head of a task; `None` if the last layer is not plain or the loss not one of torch's.

        Args:
            targets: of the support set.
            evaluate: the support loss, with its outputs and features.
        """
        if (
            not isinstance(targets, Tensor)
            or self._loss is None
            or (
                self._loss == "cross_entropy"
                and targets.dtype != torch.int64  # class probabilities
            )
        ):
            return None
        head = self._find()
        if head is None:
            return None
        return SupportHead(
            head.weight, head.bias, self._loss, targets, lambda params: evaluate(head, params)
        )
