"""Activations that the backward pass computes again instead of keeping them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from fastmeta.functional._inspection import is_compiled
from fastmeta.inner_step import at_step, current_step

# What a part of a module runs in, the first time and again.
Around = Callable[[nn.Module], AbstractContextManager[None]]


@contextmanager
def checkpointed(module: nn.Module, around: Around) -> Iterator[None]:
    """Runs the parts of ``module`` under ``torch.utils.checkpoint`` in this context.

    A part is what keeps nothing but its inputs: in every ``nn.Sequential`` a composite module, or a
    layer with a weight matrix and what follows it (so that normalisation, activation and pooling
    stay with their layer); in every ``nn.ModuleList`` or ``nn.ModuleDict`` a composite member. They
    are run again with the same parameters, random numbers and buffers, which change only once, and
    for the same inner step.
    """
    units = [unit for unit in dict.fromkeys(_units(module)) if "forward" not in vars(unit)]
    for unit in units:
        own = _is_sequence(unit)
        run = partial(_sequence, unit) if own else partial(_again, _Member(unit))
        unit.forward = partial(run, around)
    try:
        yield
    finally:
        for unit in units:
            del unit.forward


def check_parts(module: nn.Module) -> None:
    """Refuses modules in which no activation would be computed again.

    Raises:
        ValueError: if there is no part to be found, or ``torch.compile`` holds the module.
    """
    if any(map(is_compiled, module.modules())):
        raise ValueError(
            "checkpoint=True cannot change a compiled module; expected an ordinary one. "
            "torch.compile decides by itself what is computed again."
        )
    if not any(_units(module)):
        raise ValueError(
            "checkpoint=True runs the parts of an nn.Sequential, or the composite members of an "
            f"nn.ModuleList or nn.ModuleDict, again; {type(module).__name__} has none. "
            "Put its layers into one."
        )


def _units(module: nn.Module, member: bool = False) -> Iterator[nn.Module]:
    """The outermost sequences, and members of lists that have parts themselves."""
    children = list(module.children())
    listed = isinstance(module, (nn.ModuleList, nn.ModuleDict))
    if children and (_is_sequence(module) or (member and not listed)):
        yield module
        return
    for child in children:
        yield from _units(child, member=listed)


def _is_sequence(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward


def _sequence(chain: nn.Module, around: Around, x: Any) -> Any:
    """``nn.Sequential.forward`` part by part."""
    parts: list[OrderedDict[str, nn.Module]] = []
    for name, child in chain._modules.items():
        assert child is not None
        matrix = any(param.dim() > 1 for param in child.parameters(recurse=False))
        if matrix or any(True for _ in child.children()) or not parts:
            parts.append(OrderedDict())
        parts[-1][name] = child
    for part in parts:
        x = _again(nn.Sequential(part), around, x)
    return x


class _Member(nn.Module):
    """A module with the forward that it has now."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.forward = module.forward


def _again(part: nn.Module, around: Around, *args: Any, **kwargs: Any) -> Any:
    """Runs a part so that the backward pass can repeat it, when ``part`` has other tensors."""
    params = dict(part.named_parameters())
    before = {name: buffer.clone() for name, buffer in part.named_buffers()}
    step, first = current_step(), True

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal first
        with at_step(step), around(part):
            if first:
                first = False
                return part(*args, **kwargs)
            copies = {name: buffer.clone() for name, buffer in before.items()}
            return functional_call(part, {**params, **copies}, args, kwargs)

    return checkpoint(run, *args, use_reentrant=False, **kwargs)
