"""Modules whose forward is a chain of layers, found by tracing it with `torch.fx`."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call
from typing_extensions import override

from fastmeta.engines._fingerprint import Fingerprint, Fingerprints
from fastmeta.engines._recognition import leaves_of
from fastmeta.functional._inspection import is_plain
from fastmeta.functional.rng import preserve_rng
from fastmeta.models import PerStepBatchNorm2d

# Functions and methods by the module that computes the same, and the names of their arguments.
_POOLING = ("kernel_size", "stride", "padding", "ceil_mode")
_MODULES: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    **dict.fromkeys((F.relu, torch.relu, "relu"), (nn.ReLU, ())),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), (nn.Tanh, ())),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), (nn.Sigmoid, ())),
    F.silu: (nn.SiLU, ()),
    F.gelu: (nn.GELU, ("approximate",)),
    F.elu: (nn.ELU, ("alpha",)),
    F.leaky_relu: (nn.LeakyReLU, ("negative_slope",)),
    F.max_pool2d: (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    F.avg_pool2d: (nn.AvgPool2d, (*_POOLING, "count_include_pad", "divisor_override")),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
    **dict.fromkeys((torch.flatten, "flatten"), (nn.Flatten, ("start_dim", "end_dim"))),
}
# Arguments without an effect on the result, and those that must be false.
_IGNORED, _FALSE = ("inplace",), ("return_indices",)


class Leaves:
    """The layers of a module in order of execution: as `leaves_of`, else by tracing.

    Traced anew when a Python value or a layout in the module has changed. A trace is used only if
    its layers compute what the module computes, on the first examples seen.
    """

    def __init__(self) -> None:
        self._fingerprints = Fingerprints()
        self._key: Fingerprint | None = None
        self._found: list[nn.Module] | str = ""

    def of(self, module: nn.Module, x: Tensor) -> list[nn.Module] | str:
        """The layers, or the reason why they are not all that runs.

        Args:
            module: the network.
            x: examples `(n, *shape)`.
        """
        found = leaves_of(module)
        if isinstance(found, str) or all(map(_is_layer, found)):
            return found
        if not any(isinstance(m, nn.Conv2d) for m in module.modules()):
            return "the network has no convolution"
        # Not part of the fingerprint: hooks may be registered at any time.
        if changed := [m for m in module.modules() if not is_plain(m)]:
            return f"a hook or custom forward is attached to {type(changed[0]).__name__}"
        key = self._fingerprints.of(module=module)
        if key != self._key:
            self._key = key
            with preserve_rng(x.device):
                self._found = _checked(module, x)
        return self._found


def _is_layer(module: nn.Module) -> bool:
    known = type(module).__module__.startswith("torch.nn.")
    return isinstance(module, PerStepBatchNorm2d) or (known and type(module) is not nn.Sequential)


class _Tracer(fx.Tracer):
    @override
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_layer(m)


def _checked(module: nn.Module, x: Tensor) -> list[nn.Module] | str:
    name = type(module).__name__
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # whatever the module's own code raises for symbolic values
        return f"torch.fx cannot trace the forward of {name}: {error}"
    leaves = _translated(graph, module)
    if isinstance(leaves, str):
        return f"the forward of {name} is not a chain of layers: {leaves}"
    try:
        ours = _outputs(nn.Sequential(*leaves), x)
    except RuntimeError as error:
        return f"the layers in the forward of {name} do not fit one another: {error}"
    theirs = _outputs(module, x)
    tolerance = 1e3 * torch.finfo(x.dtype).eps
    if ours.shape != theirs.shape or not torch.allclose(
        ours, theirs, tolerance, tolerance, equal_nan=True
    ):
        return f"the forward of {name} computes something else than its layers in turn"
    return leaves


@torch.no_grad()
def _outputs(module: nn.Module, x: Tensor) -> Tensor:
    """The outputs, without a change of the module's buffers."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    output: Tensor = functional_call(module, buffers, (x,))
    return output


def _translated(graph: fx.Graph, module: nn.Module) -> list[nn.Module] | str:
    """The modules of a graph in which each value is computed from the one before alone."""
    leaves: list[nn.Module] = []
    current: fx.Node | None = None
    for node in graph.nodes:
        if node.op == "placeholder":
            if current is None:
                current = node
            elif node.users:
                return f"it uses the argument {node.target}"
            continue
        if _is_size(node):
            continue
        if node.op == "output":
            (result,) = node.args
            return leaves if result is current else "it returns another value than the last one"
        if not node.args or node.args[0] is not current:
            return f"{node.name} is not computed from the value before"
        if sum(not _is_size(user) for user in node.users) > 1:
            return f"{node.name} is used more than once"
        found = _modules_of(node, module)
        if found is None:
            return f"{node.name} is none of the layers known"
        leaves += found
        current = node
    return "it returns nothing"


def _is_size(node: fx.Node) -> bool:
    """Whether the value is a shape, or a number of it."""
    if node.op == "call_method":
        return node.target == "size"
    if node.target is getattr:
        return node.args[1] == "shape"
    source = node.args[0] if node.args else None
    return node.target is operator.getitem and isinstance(source, fx.Node) and _is_size(source)


def _modules_of(node: fx.Node, module: nn.Module) -> list[nn.Module] | None:
    """The modules that compute a value from the one before."""
    if node.op == "call_module":
        assert isinstance(node.target, str)
        return None if len(node.args) > 1 or node.kwargs else [module.get_submodule(node.target)]
    if node.target in ("view", "reshape"):
        # Whether the width is that of an example is found out by the check of the outputs.
        rows = node.args[1] if len(node.args) == 3 and not node.kwargs else None
        return [nn.Flatten()] if rows == -1 or isinstance(rows, fx.Node) else None
    if node.target in ("mean", torch.mean):
        args: Any = node.args[1:]
        options: Any = node.kwargs
        return _mean(*args, **options)
    kind, names = _MODULES.get(node.target, (None, ()))
    if kind is None or len(node.args) - 1 > len(names):
        return None
    given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    if any(given.pop(name, False) for name in _FALSE):
        return None
    for name in _IGNORED:
        given.pop(name, None)
    if not given.keys() <= set(names) or any(isinstance(v, fx.Node) for v in given.values()):
        return None
    if kind is nn.Flatten:
        given.setdefault("start_dim", 0)
    return [kind(**given)]


def _mean(dim: Any = None, keepdim: bool = False, **others: object) -> list[nn.Module] | None:
    """The mean over all pixels."""
    dims = {int(d) % 4 for d in dim} if isinstance(dim, (tuple, list)) else set()
    if others or dims != {2, 3}:
        return None
    return [nn.AdaptiveAvgPool2d(1), *([] if keepdim else [nn.Flatten()])]
