"""Recognition of networks that are a chain of layers of `fastmeta.ops.sequence_step`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fastmeta.engines._recognition import activation_name, is_flatten
from fastmeta.functional._fusion_steps import (
    block_length,
    is_fusible_convolution,
    is_halving_pool,
    uses_batch_statistics,
)
from fastmeta.functional._inspection import is_plain
from fastmeta.models import PerStepBatchNorm2d
from fastmeta.ops import SequenceLayer


@dataclass(frozen=True)
class ChainNorm:
    """A normalisation: one BatchNorm, or one per inner step, and the pixels of an image."""

    modules: list[Any]
    pixels: int


@dataclass
class Chain:
    """A recognised network.

    Attributes:
        shape: of one example, then of what the layers so far leave of it.
        layers: as in [`fastmeta.ops.sequence_step`][], with indices into the learner's parameters.
        params: of the layers.
        norms: of the layers, in order.
    """

    shape: tuple[int, ...]
    layers: list[SequenceLayer] = field(default_factory=list)
    params: list[Tensor] = field(default_factory=list)
    norms: list[ChainNorm] = field(default_factory=list)


class ChainReader:
    """Translates modules into layers.

    Args:
        params: the learner's parameters.
        shape: of one example.
    """

    def __init__(self, params: Sequence[Tensor], shape: tuple[int, ...]) -> None:
        self._index = {id(param): i for i, param in enumerate(params)}
        self._chain = Chain(shape)

    def read(self, leaves: Sequence[Any]) -> Chain | str:
        """The network of modules that run one after the other, or why it is no such chain."""
        chain, i = self._chain, 0
        while i < len(leaves):
            length = self._read(leaves, i)
            if isinstance(length, str):
                return length
            i += length
        if not chain.layers or chain.layers[-1].kind != "linear":
            return "the network does not end with nn.Linear"
        if not any(layer.kind == "conv" for layer in chain.layers):
            return "the network has no convolution"
        return chain

    def _read(self, leaves: Sequence[Any], at: int) -> int | str:
        """Adds the layer that begins at a module; returns how many modules it consists of."""
        module, chain = leaves[at], self._chain
        image = len(chain.shape) == 3
        if _does_nothing(module):
            return 1
        if isinstance(module, (nn.BatchNorm2d, PerStepBatchNorm2d)):
            return self._norm(leaves, at)
        if is_flatten(module):
            size = 1
            for length in chain.shape:
                size *= length
            chain.shape = (size,)
            return 1
        if type(module) is nn.Linear:
            if chain.shape != (module.in_features,):
                return f"{module} follows values of shape {chain.shape}, not flattened"
            chain.shape = (module.out_features,)
            return self._add(SequenceLayer("linear"), module)
        if image and is_fusible_convolution(module) and module.in_channels == chain.shape[0]:
            stride = module.stride[0]
            chain.shape = (module.out_channels, *((n - 1) // stride + 1 for n in chain.shape[1:]))
            return self._add(SequenceLayer("conv", stride=stride), module)
        layer = _activation(module) or (_pooling(module, chain.shape) if image else None)
        if layer is None:
            return f"{module} is not supported by the sequence kernel"
        if layer.kind != "activation":
            window = layer.window
            chain.shape = (chain.shape[0], *(n // window if window else 1 for n in chain.shape[1:]))
        chain.layers.append(layer)
        return 1

    def _norm(self, leaves: Sequence[Any], at: int) -> int | str:
        module, chain = leaves[at], self._chain
        norms: list[Any] = list(module.steps) if type(module) is PerStepBatchNorm2d else [module]
        first = norms[0]
        if not uses_batch_statistics(first):
            return "a BatchNorm2d does not use batch statistics with an affine transform"
        block = block_length([first, *leaves[at + 1 : at + 3]], 0)  # 0 where no ReLU follows
        alike = all(
            is_plain(norm)
            and uses_batch_statistics(norm)
            and norm.eps == first.eps
            and norm.num_features == chain.shape[0]
            for norm in norms
        )
        channels, *size = chain.shape
        if not alike or not chain.layers or len(size) != 2:
            return "a BatchNorm2d does not fit the layer before it, or others of its inner steps"
        pixels, pool = size[0] * size[1], block == 3
        if pool:
            if min(size) < 2:
                return "2x2 max-pooling of a map of less than 2x2 pixels"
            chain.shape = (channels, size[0] // 2, size[1] // 2)
        chain.norms.append(ChainNorm(norms, pixels))
        layer = SequenceLayer("norm", relu=block > 0, pool=pool, eps=first.eps, sets=len(norms))
        added = self._add(layer, *norms)
        return added if isinstance(added, str) else max(block, 1)

    def _add(self, layer: SequenceLayer, *modules: Any) -> int | str:
        """Adds a layer with the parameters of modules, which must follow one another."""
        params = [p for m in modules for p in (m.weight, m.bias) if p is not None]
        found = [self._index.get(id(p)) for p in params]
        start = found[0]
        if start is None or found != list(range(start, start + len(found))):
            return f"the learner does not train all parameters of {modules[0]}, or shares them"
        self._chain.params += params
        bias = modules[0].bias is not None
        self._chain.layers.append(layer._replace(weight=start, bias=bias))
        return 1


def _does_nothing(module: Any) -> bool:
    if type(module) in (nn.Dropout, nn.Dropout2d):
        return not module.training or module.p == 0
    return type(module) is nn.Identity


def _activation(module: nn.Module) -> SequenceLayer | None:
    if type(module) is nn.LeakyReLU:
        return SequenceLayer("activation", activation="leaky_relu", slope=module.negative_slope)
    name = activation_name(module)
    return None if name is None else SequenceLayer("activation", activation=name)


def _pooling(module: Any, shape: tuple[int, ...]) -> SequenceLayer | None:
    if type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
        return SequenceLayer("mean_pool")
    if min(shape[1:]) < 2:
        return None
    if is_halving_pool(module):
        return SequenceLayer("max_pool", window=2)
    if (
        type(module) is nn.AvgPool2d
        and module.kernel_size in (2, (2, 2))
        and module.stride in (2, (2, 2))
        and module.padding in (0, (0, 0))
        and not module.ceil_mode
        and not module.divisor_override
    ):
        return SequenceLayer("mean_pool", window=2)
    return None
