"""The head of a network: its last layer, if that is a plain linear one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from fastmeta.functional._inspection import globally_hooked, is_plain
from fastmeta.functional.co_learner import PREFIX


class LinearHead(NamedTuple):
    """A last layer whose outputs are `features @ weight.T + bias`.

    Attributes:
        name: of the module.
        weight: index of its weight among the trainable parameters.
        bias: index of its bias, or `None`.
    """

    name: str
    weight: int
    bias: int | None


def find_head(
    module: nn.Module, params: Sequence[Tensor], names: Sequence[str]
) -> LinearHead | None:
    """The module of the last trainable weight, if it is a plain `nn.Linear` that shares none.

    Args:
        module: the network.
        params: its trainable parameters, in the order of the module.
        names: of the parameters.
    """
    weights = [i for i, (p, n) in enumerate(zip(params, names, strict=True)) if _is_weight(p, n)]
    if not weights:
        return None
    name, _, leaf = names[weights[-1]].rpartition(".")
    layer = module.get_submodule(name)
    if type(layer) is not nn.Linear or leaf != "weight" or not is_plain(layer):
        return None
    own = [p for p in (layer.weight, layer.bias) if p is not None]
    every = (p for m in module.modules() for p in m._parameters.values())
    tied = sum(any(p is q for q in own) for p in every) > len(own)
    if tied or globally_hooked():
        return None
    if layer.bias is None:
        return LinearHead(name, weights[-1], None)
    bias = f"{name}.bias" if name else "bias"
    # A frozen bias is no part of the support gradient.
    return LinearHead(name, weights[-1], names.index(bias) if bias in names else None)


def _is_weight(param: Tensor, name: str) -> bool:
    return param.dim() > 1 and not name.startswith(PREFIX)


def head_inputs(seen: Sequence[tuple[object, object]], output: object) -> Tensor | None:
    """The inputs of the head, if `output` is the result of its only captured call."""
    (inputs, result), *others = seen or [(None, None)]
    return inputs if not others and result is output and isinstance(inputs, Tensor) else None


@contextmanager
def capture_calls(module: nn.Module, seen: list[tuple[object, object]]) -> Iterator[None]:
    """Appends input and output of each call of the module in this context to `seen`."""

    def append(_module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        seen.append((inputs[0] if inputs else None, output))

    handle = module.register_forward_hook(append)
    try:
        yield
    finally:
        handle.remove()
