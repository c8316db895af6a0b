"""Recognises a plain multi-layer perceptron in an ordinary module, and torch's own losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.engines.base import Loss, UnsuitableError
from fastmeta.functional._inspection import globally_hooked, is_plain
from fastmeta.models import MLP

_PLAIN_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
}


@dataclass(frozen=True)
class MlpNetwork:
    """A recognised network.

    Attributes:
        params: weight and bias of every layer, in the order of computation.
        activations: names as in :func:`fastmeta.ops.mlp_step`.
        inputs: size of an input.
        outputs: size of an output.
        flattens: whether it begins with a flattening.
    """

    params: list[Tensor]
    activations: list[str]
    inputs: int
    outputs: int
    flattens: bool


def read_mlp(module: nn.Module) -> MlpNetwork:
    """The linear layers and activations of a (nested) ``nn.Sequential`` or ``models.MLP``.

    Raises:
        UnsuitableError: if there is anything else in it, or anything attached to it.
    """
    if globally_hooked():
        raise UnsuitableError("a global module hook is registered")
    leaves = list(_leaves(module))
    flattens = bool(leaves) and _is_flatten(leaves[0])
    leaves = leaves[flattens:]
    linear = [m for m in leaves[::2] if type(m) is nn.Linear]
    between = leaves[1::2]
    if len(linear) != len(between) + 1 or len(linear) + len(between) != len(leaves):
        raise UnsuitableError(
            "the network is not a sequence of nn.Linear with one activation between each two: "
            + " ".join(type(m).__name__ for m in leaves)
        )
    params: list[Tensor] = []
    for layer in linear:
        params += [p for p in (layer.weight, layer.bias) if p is not None]
    inputs, outputs = linear[0].weight.shape[1], linear[-1].weight.shape[0]
    return MlpNetwork(params, [_activation(m) for m in between], inputs, outputs, flattens)


def loss_name(loss: Loss) -> str:
    """``"mse"`` or ``"cross_entropy"`` for torch's own losses with their default options.

    Raises:
        UnsuitableError: if it is another loss.
    """
    if loss is F.mse_loss:
        return "mse"
    if loss is F.cross_entropy:
        return "cross_entropy"
    raise UnsuitableError(
        "the loss is neither torch.nn.functional.mse_loss nor cross_entropy, but "
        f"{getattr(loss, '__name__', type(loss).__name__)}"
    )


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    if not is_plain(module):
        raise UnsuitableError(f"a hook or another forward is attached to {type(module).__name__}")
    if type(module) is MLP:
        yield from _leaves(module.layers)
    elif type(module) is nn.Sequential:
        for child in module._modules.values():
            assert child is not None
            yield from _leaves(child)
    else:
        yield module


def _is_flatten(module: nn.Module) -> bool:
    return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)


def _activation(module: nn.Module) -> str:
    if type(module) is nn.ELU and module.alpha == 1:
        return "elu"
    if type(module) is nn.GELU and module.approximate == "none":
        return "gelu"
    if type(module) not in _PLAIN_ACTIVATIONS:
        raise UnsuitableError(f"{module} is not an activation of the MLP kernel")
    return _PLAIN_ACTIVATIONS[type(module)]
