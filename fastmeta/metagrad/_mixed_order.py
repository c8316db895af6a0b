"""Base class of meta-gradients that differentiate the inner gradients of some layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext

from torch import Tensor
from typing_extensions import override

from fastmeta.adaptation import Adaptation
from fastmeta.adaptation.layer_pattern import read_pattern
from fastmeta.adaptation.layers import find_layers
from fastmeta.functional import twice_differentiable
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient
from fastmeta.metagrad.first_order import first_order
from fastmeta.metagrad.task_losses import TaskLosses

# One mask over the parameters per inner step; the last one is that of all further steps.
Masks = Sequence[Sequence[bool]]


class MixedOrder(MetaGradient):
    """Differentiates the inner gradients of some layers; those of the others are constants.

    Args:
        layers: `"all"`; `"none"`, which is FOMAML; or a pattern of layers, see
            [`read_pattern`][fastmeta.adaptation.layer_pattern.read_pattern].

    Raises:
        ValueError: if the pattern is neither a string nor a number made of bits.
    """

    def __init__(self, layers: str = "all") -> None:
        # Configuration files and flags read 11111 as a number.
        if not isinstance(layers, str) and not set(str(layers)) <= set("01"):
            raise ValueError(f"layers must be a string, got {layers!r}. Put it in quotes.")
        self.layers = str(layers)

    @property
    def is_first_order(self) -> bool:
        """Whether no inner gradient is differentiated at all."""
        return self.layers == "none"

    @property
    @override
    def second_order(self) -> bool:
        # The gradient of the last layer is linear in the features: below it, nothing is
        # differentiated twice.
        return not self.is_first_order and self.layers != "head"

    @override
    def prepare(self, params: Sequence[Tensor], names: Sequence[str]) -> Masks | None:
        """Which parameters' inner gradients are differentiated; `None` means all.

        Raises:
            ValueError: if the pattern does not suit the network.
        """
        if self.layers in ("all", "none"):
            return None
        layers = find_layers(params, names)
        steps = read_pattern(self.layers, [layer.name for layer in layers])
        members = [{i for k in step for i in layers[k].members} for step in steps]
        return tuple(tuple(i in step for i in range(len(params))) for step in members)

    @override
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        if self.is_first_order:
            return first_order(
                lambda p: losses.support(p)[0], losses.query, params, adaptation, context
            )[0]
        with twice_differentiable() if self.second_order else nullcontext():
            return self.differentiate(losses, params, adaptation, context)

    @abstractmethod
    def differentiate(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        """[`task`][fastmeta.metagrad.MetaGradient.task] where some layers are differentiated.

        `context.prepared` has the masks of [`prepare`][fastmeta.metagrad.MetaGradient.prepare].
        """


def mask_of(masks: Masks, step: int) -> Sequence[bool]:
    """The mask of an inner step."""
    return masks[min(step, len(masks) - 1)]
