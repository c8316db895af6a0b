"""Differentiable optimizers."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

Override = Mapping[str, Sequence[Any]]
GradCallback = Callable[[Sequence[Any]], Sequence[Any]]


class DifferentiableOptimizer(ABC):
    """Base class of differentiable optimizers.

    Args:
        other: the optimizer whose hyperparameters and state to copy; it is not changed.
        reference_params: the parameters of the module.
        fmodel: the functional copy of the module, whose fast weights are updated.
        device: the device of the state; that of the state of `other` by default.
        override: hyperparameters to override, each with a list of one value for all parameter
            groups or one value for each. Values may be tensors that require gradients.
        grad_callback: maps the gradients of all parameters to those to use.
        track_higher_grads: whether steps can be differentiated.

    Raises:
        ValueError: if an option is not supported, a list of `override` has the wrong length, or
            a parameter does not belong to the module.
    """

    UNSUPPORTED: tuple[str, ...] = ("maximize",)

    def __init__(
        self,
        other: torch.optim.Optimizer,
        reference_params: Iterable[Tensor],
        fmodel: Any = None,
        device: torch.device | str | None = None,
        override: Override | None = None,
        grad_callback: GradCallback | None = None,
        track_higher_grads: bool = True,
    ) -> None:
        number = {p: i for i, p in enumerate(reference_params)}
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[int, dict[str, Any]] = {}
        for group in other.param_groups:
            for name in self.UNSUPPORTED:
                if group.get(name):
                    raise ValueError(
                        f"expected {type(other).__name__} without {name}, which is not supported; "
                        f"got {name}={group[name]!r}."
                    )
            if not set(group["params"]) <= number.keys():
                raise ValueError(
                    "the optimizer has a parameter that is not in the module. Create "
                    "the optimizer from model.parameters()."
                )
            settings = {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}
            indices = [number[p] for p in group["params"]]
            self.param_groups.append({**settings, "params": indices})
            for p in group["params"]:
                self.state[number[p]] = {
                    name: value.detach().clone().to(device) if torch.is_tensor(value) else value
                    for name, value in other.state.get(p, {}).items()
                }
        self._override(override)
        self._fmodel = fmodel
        self._grad_callback = grad_callback
        self._track_higher_grads = track_higher_grads

    def _override(self, override: Override | None) -> None:
        for name, values in (override or {}).items():
            if len(values) not in (1, len(self.param_groups)):
                raise ValueError(
                    f"override[{name!r}]: expected a list of one value or of "
                    f"{len(self.param_groups)}, one for each parameter group; got {len(values)}."
                )
            for k, group in enumerate(self.param_groups):
                group[name] = values[0] if len(values) == 1 else values[k]

    def step(
        self,
        loss: Tensor,
        params: Iterable[Tensor] | None = None,
        override: Override | None = None,
        grad_callback: GradCallback | None = None,
    ) -> list[Tensor]:
        """Takes an optimizer step and updates the functional module.

        Args:
            loss: a scalar.
            params: the fast weights; those of the functional module by default.
            override: hyperparameters to override in this and later steps.
            grad_callback: overrides that of the optimizer in this step.

        Returns:
            The new fast weights.

        Raises:
            ValueError: if there are neither `params` nor a functional module.
        """
        self._override(override)
        if params is None:
            if self._fmodel is None:
                raise ValueError(
                    "expected params= or a functional module; got neither. Pass fmodel= to "
                    "get_diff_optim, or the fast weights to step."
                )
            params = self._fmodel.fast_params
        new = list(params)
        grads = self._grads(loss, new, grad_callback or self._grad_callback)
        for group in self.param_groups:
            for i in group["params"]:
                if grads[i] is not None:
                    new[i] = self._updated(group, self.state[i], new[i], grads[i])
                if not self._track_higher_grads:
                    new[i] = new[i].detach().requires_grad_()
        if self._fmodel is not None:
            self._fmodel.update_params(new)
        return new

    def _grads(
        self, loss: Tensor, params: list[Tensor], callback: GradCallback | None
    ) -> Sequence[Any]:
        wanted = [p for p in params if p.requires_grad]
        found = iter(
            torch.autograd.grad(
                loss, wanted, create_graph=self._track_higher_grads, allow_unused=True
            )
        )
        grads = [next(found) if p.requires_grad else None for p in params]
        return grads if callback is None else callback(grads)

    @abstractmethod
    def _updated(
        self, group: dict[str, Any], state: dict[str, Any], p: Tensor, g: Tensor
    ) -> Tensor:
        """The parameter after a step; state tensors are replaced, not changed in place."""


class DifferentiableSGD(DifferentiableOptimizer):
    """`torch.optim.SGD`, with (Nesterov) momentum, dampening and weight decay."""

    @override
    def _updated(
        self, group: dict[str, Any], state: dict[str, Any], p: Tensor, g: Tensor
    ) -> Tensor:
        momentum = group["momentum"]
        g = _add_weight_decay(g, group["weight_decay"], p)
        if _enabled(momentum):
            before = state.get("momentum_buffer")
            now = g if before is None else momentum * before + (1 - group["dampening"]) * g
            state["momentum_buffer"] = now
            g = g + momentum * now if group["nesterov"] else now
        updated: Tensor = p - group["lr"] * g
        return updated


class DifferentiableAdam(DifferentiableOptimizer):
    """`torch.optim.Adam`, with epsilon added before bias correction, as in higher."""

    UNSUPPORTED = ("maximize", "amsgrad")

    @override
    def _updated(
        self, group: dict[str, Any], state: dict[str, Any], p: Tensor, g: Tensor
    ) -> Tensor:
        p, g = self._weight_decay(group, p, g)
        beta1, beta2 = group["betas"]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        step = state["step"] + 1
        mean = beta1 * state["exp_avg"] + (1 - beta1) * g
        square = beta2 * state["exp_avg_sq"] + (1 - beta2) * g * g
        state.update(step=step, exp_avg=mean, exp_avg_sq=square)
        # The square root has no finite derivative at zero; treat it as constant there.
        safe = torch.where(square == 0, square.detach(), square)
        correction = 1 - beta2**step
        root = correction.sqrt() if torch.is_tensor(beta2) else math.sqrt(correction)
        rate = group["lr"] * root / (1 - beta1**step)
        updated: Tensor = p - rate * (mean / (safe.sqrt() + group["eps"]))
        return updated

    def _weight_decay(self, group: dict[str, Any], p: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return p, _add_weight_decay(g, group["weight_decay"], p)


class DifferentiableAdamW(DifferentiableAdam):
    """`torch.optim.AdamW`, with epsilon as in `DifferentiableAdam`."""

    @override
    def _weight_decay(self, group: dict[str, Any], p: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return p * (1 - group["lr"] * group["weight_decay"]), g


_KINDS: dict[type[torch.optim.Optimizer], type[DifferentiableOptimizer]] = {
    torch.optim.SGD: DifferentiableSGD,
    torch.optim.Adam: DifferentiableAdam,
    torch.optim.AdamW: DifferentiableAdamW,
}


def get_diff_optim(
    opt: torch.optim.Optimizer,
    reference_params: Iterable[Tensor],
    fmodel: Any = None,
    device: torch.device | str | None = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
    grad_callback: GradCallback | None = None,
) -> DifferentiableOptimizer:
    """The differentiable version of an optimizer, see `DifferentiableOptimizer`.

    Raises:
        ValueError: if the optimizer is not SGD, Adam or AdamW.
    """
    kind = _KINDS.get(type(opt))
    if kind is None:
        names = ", ".join(known.__name__ for known in _KINDS)
        raise ValueError(f"the inner optimizer must be one of {names}; got {type(opt).__name__}.")
    return kind(opt, reference_params, fmodel, device, override, grad_callback, track_higher_grads)


def _enabled(setting: Any) -> bool:
    return torch.is_tensor(setting) or setting != 0


def _add_weight_decay(g: Tensor, decay: Any, p: Tensor) -> Tensor:
    return g + decay * p if _enabled(decay) else g
