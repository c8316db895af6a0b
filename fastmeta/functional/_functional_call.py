"""`torch.func.functional_call` for modules that contain a submodule twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def has_repeated_parts(module: nn.Module) -> bool:
    """Whether a submodule is found under two names."""
    with_repeats = sum(1 for _ in module.named_modules(remove_duplicate=False))
    return sum(1 for _ in module.modules()) < with_repeats


def call_with(
    module: nn.Module,
    values: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    repeated: bool | None = None,
) -> Any:
    """The module's result with other parameters and buffers; it is unchanged afterwards.

    Under `torch.func.functional_call` alone, a submodule that is found under two names keeps
    `values` as its own (torch 2.13): it is changed twice, and restored to what it was before the
    second change.

    Args:
        module: the module.
        values: parameters and buffers by name; tied ones once, and missing ones keep their values.
        args: of the module.
        kwargs: of the module.
        repeated: `has_repeated_parts(module)`, if known.
    """
    if not (has_repeated_parts(module) if repeated is None else repeated):
        return functional_call(module, dict(values), args, kwargs)
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    new = {id(own[name]): value for name, value in values.items()}
    once = {
        f"{prefix}.{name}" if prefix else name: new[id(tensor)]
        for prefix, part in module.named_modules()
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]
        if id(tensor) in new
    }
    return functional_call(module, once, args, kwargs, tie_weights=False)
