"""Optimizers: differentiable ones of modules, and those of lists of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fastmeta.compat._clone import refresh
from fastmeta.compat.torchopt.alias import adam, adamw, rmsprop, sgd
from fastmeta.compat.torchopt.transform import GradientTransformation

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "FuncOptimizer",
    "MetaAdam",
    "MetaAdamW",
    "MetaOptimizer",
    "MetaRMSProp",
    "MetaRMSprop",
    "MetaSGD",
    "Optimizer",
    "RMSProp",
    "RMSprop",
    "apply_updates",
]


def apply_updates(params: Any, updates: Any, *, inplace: bool = True) -> Any:
    """The parameters plus the updates.

    Args:
        params: the parameters.
        updates: in the same structure; `None` leaves a parameter as it is.
        inplace: whether the values of the parameters are changed, without a graph.
    """

    def added(p: Tensor, u: Tensor | None) -> Tensor:
        if u is None:
            return p
        if not inplace:
            return p.add(u)
        p.data.add_(u.detach())
        return p

    return tree_map(added, params, updates)


class MetaOptimizer:
    """A differentiable optimizer of a module's parameters.

    Args:
        module: its parameters are replaced by their successors in each step, with their graph.
        impl: the functional optimizer.

    Raises:
        TypeError: if `impl` is something else.
    """

    def __init__(self, module: nn.Module, impl: GradientTransformation) -> None:
        self.impl = _checked(impl)
        self._groups: list[_Slots] = []
        self.state_groups: list[Any] = []
        self.add_param_group(module)

    def add_param_group(self, module: nn.Module) -> None:
        """Adds the parameters of another module."""
        self._groups.append(_Slots(module))
        self.state_groups.append(None)

    def step(self, loss: Tensor) -> None:
        """Replaces the parameters by those after a step on a loss, differentiably."""
        for i, slots in enumerate(self._groups):
            params = slots.read()
            if self.state_groups[i] is None:
                self.state_groups[i] = self.impl.init(params)
            grads = _gradients(loss, params)
            updates, self.state_groups[i] = self.impl.update(
                grads, self.state_groups[i], params=params, inplace=False
            )
            slots.write(apply_updates(params, updates, inplace=False))

    def state_dict(self) -> tuple[Any, ...]:
        """The states of all groups; the tensors are not copied."""
        return tuple(self.state_groups)

    def load_state_dict(self, state_dict: Sequence[Any]) -> None:
        """Sets the states, from `state_dict`."""
        self.state_groups = list(state_dict)


class MetaSGD(MetaOptimizer):
    """`MetaOptimizer` with `sgd`, whose arguments follow; the first buffers require a gradient."""

    def __init__(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(module, sgd(*args, **{"moment_requires_grad": True, **kwargs}))


class MetaAdam(MetaOptimizer):
    """`MetaOptimizer` with `adam`, whose arguments follow; the first moments require a gradient."""

    def __init__(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(module, adam(*args, **{"moment_requires_grad": True, **kwargs}))


class MetaAdamW(MetaOptimizer):
    """`MetaOptimizer` with `adamw`, whose arguments follow; as `MetaAdam`."""

    def __init__(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(module, adamw(*args, **{"moment_requires_grad": True, **kwargs}))


class MetaRMSProp(MetaOptimizer):
    """`MetaOptimizer` with `rmsprop`, whose arguments follow."""

    def __init__(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(module, rmsprop(*args, **kwargs))


MetaRMSprop = MetaRMSProp


class FuncOptimizer:
    """A functional optimizer with its state.

    Args:
        impl: the functional optimizer.
        inplace: whether steps change the values of the parameters, without a graph.

    Raises:
        TypeError: if `impl` is something else.
    """

    def __init__(self, impl: GradientTransformation, *, inplace: bool = False) -> None:
        self.impl = _checked(impl)
        self.inplace = inplace
        self.optim_state: Any = None

    def step(self, loss: Tensor, params: Any, inplace: bool | None = None) -> Any:
        """The parameters after a step.

        Args:
            loss: a scalar.
            params: a structure of tensors.
            inplace: instead of the optimizer's.
        """
        inplace = self.inplace if inplace is None else inplace
        if self.optim_state is None:
            self.optim_state = self.impl.init(params)
        leaves, structure = tree_flatten(params)
        grads = tree_unflatten(_gradients(loss, leaves), structure)
        updates, self.optim_state = self.impl.update(
            grads, self.optim_state, params=params, inplace=inplace
        )
        return apply_updates(params, updates, inplace=inplace)

    def state_dict(self) -> Any:
        """The state; its tensors are not copied."""
        return self.optim_state

    def load_state_dict(self, state_dict: Any) -> None:
        """Sets the state, from `state_dict`."""
        self.optim_state = state_dict


class Optimizer:
    """An optimizer as in `torch.optim`, from a functional one.

    Args:
        params: the parameters.
        impl: the functional optimizer.

    Raises:
        TypeError: if `impl` is something else.
    """

    def __init__(self, params: Iterable[Tensor], impl: GradientTransformation) -> None:
        self.impl = _checked(impl)
        self.param_groups: list[tuple[Tensor, ...]] = []
        self.state_groups: list[Any] = []
        self.add_param_group(params)

    def add_param_group(self, params: Iterable[Tensor]) -> None:
        """Adds parameters."""
        self.param_groups.append(tuple(params))
        self.state_groups.append(None)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Sets the gradients to zero, or to `None`."""
        for p in (p for group in self.param_groups for p in group if p.grad is not None):
            p.grad = None if set_to_none else torch.zeros_like(p)

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Changes the parameters; the loss of `closure`, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for i, params in enumerate(self.param_groups):
            if self.state_groups[i] is None:
                self.state_groups[i] = self.impl.init(params)
            grads = tuple(None if p.grad is None else p.grad.detach() for p in params)
            updates, self.state_groups[i] = self.impl.update(
                grads, self.state_groups[i], params=params, inplace=True
            )
            apply_updates(params, updates)
        return loss

    def state_dict(self) -> tuple[Any, ...]:
        """The states of all groups; the tensors are not copied."""
        return tuple(self.state_groups)

    def load_state_dict(self, state_dict: Sequence[Any]) -> None:
        """Sets the states, from `state_dict`."""
        self.state_groups = list(state_dict)


class SGD(Optimizer):
    """`Optimizer` with `sgd`, whose arguments follow."""

    def __init__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        super().__init__(params, sgd(*args, **kwargs))


class Adam(Optimizer):
    """`Optimizer` with `adam`, whose arguments follow."""

    def __init__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        super().__init__(params, adam(*args, **kwargs))


class AdamW(Optimizer):
    """`Optimizer` with `adamw`, whose arguments follow."""

    def __init__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        super().__init__(params, adamw(*args, **kwargs))


class RMSProp(Optimizer):
    """`Optimizer` with `rmsprop`, whose arguments follow."""

    def __init__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        super().__init__(params, rmsprop(*args, **kwargs))


RMSprop = RMSProp


class _Slots:
    """Where the parameters of a module are; a tied one is in several places."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        number: dict[Tensor, int] = {}
        self._places: list[tuple[dict[str, Any], str, int]] = [
            (part._parameters, name, number.setdefault(p, len(number)))
            for part in module.modules()
            for name, p in part._parameters.items()
            if p is not None
        ]
        self._count = len(number)

    def read(self) -> tuple[Tensor, ...]:
        found = {i: container[name] for container, name, i in self._places}
        return tuple(found[i] for i in range(self._count))

    def write(self, params: Sequence[Tensor]) -> None:
        for container, name, i in self._places:
            container[name] = params[i]
        for part in self._module.modules():
            refresh(part)


def _gradients(loss: Tensor, params: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    wanted = [p for p in params if p.requires_grad]
    found = iter(torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True))
    return tuple(next(found) if p.requires_grad else None for p in params)


def _checked(impl: Any) -> GradientTransformation:
    if not isinstance(impl, GradientTransformation):
        raise TypeError(
            "impl must be a functional optimizer, such as adam(1e-3), or chain(...) of "
            f"transformations; got {type(impl).__name__}."
        )
    return impl
