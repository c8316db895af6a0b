"""Activation checkpointing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastmeta.functional._dual_checkpointing import checkpoint_duals, in_forward_mode
from fastmeta.functional._functional_call import call_with
from fastmeta.functional._inspection import is_compiled
from fastmeta.inner_step import at_step, current_step

# Whether activations are recomputed; `"second-order"`: only where second derivatives are taken.
Checkpoint = bool | Literal["second-order"]
# Opens the context of one forward pass of a module, or of a part of it.
ForwardPlan = Callable[[], AbstractContextManager[None]]


def plan_with_checkpoints(
    module: nn.Module, plan: Callable[[nn.Module], ForwardPlan], checkpoint: Checkpoint
) -> ForwardPlan:
    """The plan of a module's forward passes.

    Args:
        module: the module.
        plan: the plan of the module or a segment without activation checkpointing.
        checkpoint: whether activations are recomputed.
    """
    ordinary = plan(module)
    if not checkpoint:
        return ordinary
    recomputing = CheckpointPlan(module, plan).applied
    if checkpoint is True:
        return recomputing
    return lambda: recomputing() if in_forward_mode() else ordinary()


class CheckpointPlan:
    """Runs the segments of a module under `torch.utils.checkpoint`.

    A segment is what keeps only its inputs: in every `nn.Sequential` a composite module, or a
    layer with a weight matrix and what follows it (so that normalisation, activation and pooling
    stay with their layer); in every `nn.ModuleList` or `nn.ModuleDict` a composite member. The
    backward pass recomputes them with the same parameters, random numbers and buffers, which change
    only once, and for the same inner step.

    Args:
        module: the module.
        plan: the plan of a segment, for its forward pass and its recomputation.
    """

    def __init__(self, module: nn.Module, plan: Callable[[nn.Module], ForwardPlan]) -> None:
        self._units = list(dict.fromkeys(_units(module)))
        self._plan = plan
        self._segments: dict[nn.Module, list[_Segment]] = {}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the outermost sequences and composite members other forwards in this context."""
        units = [unit for unit in self._units if "forward" not in vars(unit)]
        for unit in units:
            if unit not in self._segments:
                self._segments[unit] = [_Segment(s, self._plan(s)) for s in _split(unit)]
            unit.forward = partial(_run, self._segments[unit])
        try:
            yield
        finally:
            for unit in units:
                del unit.forward


def check_segments(module: nn.Module) -> None:
    """Rejects modules in which no activation would be recomputed.

    Raises:
        ValueError: if the module has no segment, or `torch.compile` holds it.
    """
    if any(map(is_compiled, module.modules())):
        raise ValueError(
            "checkpoint=True cannot change a compiled module; expected an ordinary one. "
            "torch.compile decides by itself what is recomputed."
        )
    if not any(_units(module)):
        raise ValueError(
            "checkpoint=True recomputes the parts of an nn.Sequential, or the composite members of "
            f"an nn.ModuleList or nn.ModuleDict; {type(module).__name__} has none. "
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


def _split(unit: nn.Module) -> list[nn.Module]:
    """The segments of a unit, which still has its own forward."""
    if not _is_sequence(unit):
        return [_Member(unit)]
    segments: list[OrderedDict[str, nn.Module]] = []
    for name, child in unit._modules.items():
        assert child is not None
        matrix = any(param.dim() > 1 for param in child.parameters(recurse=False))
        if matrix or any(True for _ in child.children()) or not segments:
            segments.append(OrderedDict())
        segments[-1][name] = child
    return [nn.Sequential(segment) for segment in segments]


class _Member(nn.Module):
    """A module with the forward that it has now."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.forward = module.forward


class _Segment:
    """A module whose activations the backward pass recomputes.

    Args:
        module: the module.
        plan: opens the context of its forward pass.
    """

    def __init__(self, module: nn.Module, plan: ForwardPlan) -> None:
        self._module = module
        self._plan = plan

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module so that it can be repeated after its tensors have been replaced."""
        module = self._module
        params = dict(module.named_parameters())
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        step, pending = current_step(), True

        def first(*args: Any, **kwargs: Any) -> Any:
            with at_step(step), self._plan():
                return module(*args, **kwargs)

        def again(params: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
            copies = {name: buffer.clone() for name, buffer in before.items()}
            with at_step(step), self._plan():
                return call_with(module, {**params, **copies}, args, kwargs)

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal pending
            if pending:
                pending = False
                return first(*args, **kwargs)
            return again(params, *args, **kwargs)

        if in_forward_mode():
            return checkpoint_duals(first, again, params, *args, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, **kwargs)


def _run(segments: list[_Segment], /, *args: Any, **kwargs: Any) -> Any:
    """The forward of a unit: its segments one after the other."""
    first, *others = segments
    x = first(*args, **kwargs)
    for segment in others:
        x = segment(x)
    return x
