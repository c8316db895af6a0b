"""Recognition of plain multi-layer perceptrons and of torch's own losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.functional import Loss
from fastmeta.functional._inspection import globally_hooked, is_plain
from fastmeta.models import MLP, Conv4

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
        params: weight and bias of every layer, in order of execution.
        activations: names as in [`fastmeta.ops.mlp_step`][].
        inputs: number of input features.
        outputs: number of output features.
        flattens: whether it begins with `nn.Flatten`.
    """

    params: list[Tensor]
    activations: list[str]
    inputs: int
    outputs: int
    flattens: bool

    @property
    def layers(self) -> int:
        """The number of linear layers."""
        return len(self.activations) + 1


def read_mlp(module: nn.Module) -> MlpNetwork | str:
    """The linear layers and activations of a (nested) `nn.Sequential` or `models.MLP`.

    Returns:
        The network, or the reason why the module is not a plain MLP.
    """
    leaves = leaves_of(module)
    if isinstance(leaves, str):
        return leaves
    flattens = bool(leaves) and is_flatten(leaves[0])
    leaves = leaves[flattens:]
    linear = [m for m in leaves[::2] if type(m) is nn.Linear]
    between = leaves[1::2]
    if len(linear) != len(between) + 1 or len(linear) + len(between) != len(leaves):
        return (
            "the network is not a sequence of nn.Linear with one activation in between: "
            + " ".join(type(m).__name__ for m in leaves)
        )
    activations: list[str] = []
    for layer in between:
        name = activation_name(layer)
        if name is None:
            return f"{layer} is not supported by the MLP kernel"
        activations.append(name)
    params: list[Tensor] = []
    for layer in linear:
        params += [p for p in (layer.weight, layer.bias) if p is not None]
    inputs, outputs = linear[0].weight.shape[1], linear[-1].weight.shape[0]
    return MlpNetwork(params, activations, inputs, outputs, flattens)


def loss_name(loss: Loss) -> str | None:
    """`"mse"` or `"cross_entropy"` for torch's own losses with default options, or `None`."""
    if loss is F.mse_loss:
        return "mse"
    if loss is F.cross_entropy:
        return "cross_entropy"
    return None


def leaves_of(module: nn.Module) -> list[nn.Module] | str:
    """The modules of a (nested) `nn.Sequential`, or of a model of ours that is one.

    Returns:
        The modules in order of execution, or the reason why they are not all that runs.
    """
    if globally_hooked():
        return "a global module hook is registered"
    leaves: list[nn.Module] = []
    if (changed := _collect(module, leaves)) is not None:
        return f"a hook or custom forward is attached to {type(changed).__name__}"
    return leaves


def _collect(module: nn.Module, leaves: list[nn.Module]) -> nn.Module | None:
    """Adds the leaves of `module` to `leaves`; returns the first non-plain submodule."""
    if not is_plain(module):
        return module
    parts: list[nn.Module] | None = None
    if type(module) is MLP:
        parts = [module.layers]
    elif type(module) is Conv4:
        parts = [module.features, module.head]
    elif type(module) is nn.Sequential:
        parts = list(module)
    if parts is not None:
        for part in parts:
            if (changed := _collect(part, leaves)) is not None:
                return changed
        return None
    leaves.append(module)
    return None


def is_flatten(module: nn.Module) -> bool:
    """Whether this is `nn.Flatten` of all but the examples."""
    return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)


def activation_name(module: nn.Module) -> str | None:
    """The name of an activation as in [`fastmeta.ops.mlp_step`][]; `None` if it has none."""
    if type(module) is nn.ELU and module.alpha == 1:
        return "elu"
    if type(module) is nn.GELU and module.approximate == "none":
        return "gelu"
    return _PLAIN_ACTIVATIONS.get(type(module))
