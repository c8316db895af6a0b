"""Adapted networks that are not the network with other parameters."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, overload

from torch import Tensor
from typing_extensions import override

from fastmeta.functional._buffers import Buffers
from fastmeta.functional.head import LinearHead, capture_calls, head_inputs

if TYPE_CHECKING:
    from fastmeta.functional.module import FunctionalModule
    from fastmeta.tasks import Examples

Own = TypeVar("Own", bound="Predictor")


@dataclass(frozen=True)
class Network:
    """A network on one set of inputs, as a function of its parameters.

    Attributes:
        model: the network.
        buffers: of the task; updated.
        x: the inputs, `(n, *input)`.
    """

    model: FunctionalModule
    buffers: Buffers
    x: Examples

    def outputs(self, params: Sequence[Tensor]) -> Tensor:
        """The outputs, `(n, *output)`.

        Raises:
            TypeError: if they are not a tensor.
        """
        return _tensor(self.model._run(params, self.buffers, self.x, nullcontext()))

    def with_features(self, params: Sequence[Tensor]) -> tuple[Tensor, Tensor, LinearHead]:
        """The outputs `(n, c)`, the features `(n, d)` that the last layer takes, and this layer.

        Raises:
            TypeError: if the outputs are not a tensor.
            ValueError: if they are not those of one call of a linear last layer.
        """
        head = self.model.find_head()
        if head is None:
            raise ValueError(
                "a kernel on the features needs a network whose last trainable layer is a plain "
                "nn.Linear, which shares its weights with no other layer and has no hooks. Use "
                "such a network, or adaptation.NTK."
            )
        seen: list[tuple[object, object]] = []
        capture = capture_calls(self.model.module.get_submodule(head.name), seen)
        output = _tensor(self.model._run(params, self.buffers, self.x, capture))
        features = head_inputs(seen, output)
        if features is None:
            raise ValueError(
                f"the network's outputs are not those of one call of {head.name!r}, its last "
                "linear layer. Use a network that ends with it, or adaptation.NTK."
            )
        if features.dim() != 2:
            raise ValueError(
                f"the features have shape {tuple(features.shape)}; expected (n, d). Use "
                "adaptation.NTK, which needs none."
            )
        return output, features, head


class Predictor(Sequence[Tensor]):
    """An adapted network that is not the network with other parameters.

    It stands where fast weights stand: a [`FunctionalModule`][fastmeta.functional.FunctionalModule]
    takes it in place of the parameters. As a sequence it is the tensors that it consists of.

    Args:
        tensors: what the outputs are computed from, beside the inputs.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)

    @abstractmethod
    def outputs(self, network: Network) -> Tensor:
        """The outputs `(n, *output)` for the inputs of `network`, differentiable in `tensors`."""

    def like(self: Own, tensors: Sequence[Tensor]) -> Own:
        """The same predictor of other tensors, in the same order."""
        other = copy.copy(self)
        other.tensors = tuple(tensors)
        return other

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Tensor, ...]: ...

    @override
    def __getitem__(self, index: int | slice) -> Tensor | tuple[Tensor, ...]:
        return self.tensors[index]

    @override
    def __len__(self) -> int:
        return len(self.tensors)


def detached(fast: Sequence[Tensor]) -> Sequence[Tensor]:
    """Fast weights or a predictor, detached."""
    tensors = [t.detach() for t in fast]
    return fast.like(tensors) if isinstance(fast, Predictor) else tensors


def _tensor(output: object) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the module returned a {type(output).__name__}, but adaptation in closed form fits "
            "outputs to targets; expected a tensor. Wrap the module in one that returns its logits."
        )
    return output
