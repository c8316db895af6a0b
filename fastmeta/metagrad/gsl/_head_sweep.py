"""The gradient similarity loss of a linear last layer, whose support gradient is in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.adaptation import Grads, InnerStep
from fastmeta.metagrad.task_losses import SupportHead
from fastmeta.trajectory.replay import Replay


class Evaluation(NamedTuple):
    """One evaluation of the support loss, with its graph; `features` are the head's inputs."""

    loss: Tensor
    output: Tensor
    features: Tensor | None


class HeadSweep:
    """The support losses of one task in an inner loop that differentiates no gradient.

    Their graphs are those of FOMAML, kept for one more backward pass: the cotangents of the
    features are in closed form, see [`fastmeta.ops.head_similarity`][].

    Args:
        head: the last layer.
    """

    def __init__(self, head: SupportHead) -> None:
        self.head = head
        self._evaluations: list[Evaluation] = []

    def support(self, params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Loss and outputs on the support set, recorded."""
        found = Evaluation(*self.head.evaluate(params))
        if self.head.loss == "mse" and found.output.shape != self.head.targets.shape:  # broadcast
            found = found._replace(features=None)
        self._evaluations.append(found)
        return found.loss, found.output

    def discard(self) -> None:
        """Discards the evaluation of the last inner step."""
        self._evaluations.pop()

    def pop(self, step: InnerStep, replay: Replay) -> Evaluation:
        """The evaluation of the last inner step, repeated if its graph was not kept."""
        found = self._evaluations.pop()
        if step.grads is None:
            with replay.repeat(step.number) as loss:
                loss(step.params)
            found = self._evaluations.pop()
        return found

    def products(
        self,
        features: Tensor,
        output: Tensor,
        step: InnerStep,
        v: Grads,
        inner_product: float,
        cosine: float,
    ) -> list[Tensor | None]:
        """Derivatives of `<g, D>` with respect to the parameters, see `ops.head_similarity`.

        Args:
            features: with their graph, as is `output`.
            output: of the network.
            step: the inner step.
            v: the cotangents of its gradients.
            inner_product: weight of the inner product.
            cosine: weight of the cosine.
        """
        head, weight = self.head, v[self.head.weight]
        assert weight is not None
        bias = None if head.bias is None else v[head.bias]
        stacked = features.dim() == 3

        def tasks(tensor: Tensor) -> Tensor:
            return tensor if stacked else tensor.unsqueeze(0)

        with torch.no_grad():  # autocast leaves features and outputs in its own dtype
            targets = head.targets.to(weight.dtype) if head.loss == "mse" else head.targets
            found = ops.head_similarity(
                *(tasks(features.to(weight.dtype)), tasks(output.to(weight.dtype)), tasks(targets)),
                *(tasks(step.params[head.weight]), tasks(weight)),
                None if bias is None else tasks(bias),
                loss=head.loss,
                inner_product=inner_product,
                cosine=cosine,
            )
        grads: list[Tensor | None] = [None] * len(step.params)
        if features.requires_grad:
            d_features = (found.d_features if stacked else found.d_features[0]).to(features.dtype)
            grads = list(torch.autograd.grad(features, step.params, d_features, allow_unused=True))
        grads[head.weight] = found.d_weight if stacked else found.d_weight[0]
        if head.bias is not None and found.d_bias is not None:
            grads[head.bias] = found.d_bias if stacked else found.d_bias[0]
        return grads
