"""Functional copies of modules, which run on fast weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta.compat._clone import clone_module, refresh


class FunctionalModule(nn.Module):
    """Mixin that [`monkeypatch`][fastmeta.compat.higher.monkeypatch] adds to the class of a module.

    Attributes:
        track_higher_grads: whether the fast weights of all steps are kept, with their graph.
    """

    track_higher_grads: bool
    _fast_params: list[list[Tensor]]
    _slots: list[tuple[nn.Module, str, int]]

    def forward(self, *args: Any, params: Iterable[Tensor] | None = None, **kwargs: Any) -> Any:
        """Calls the module.

        Args:
            *args: arguments of the module.
            params: new fast weights, as in `update_params`.
            **kwargs: keyword arguments of the module.
        """
        if params is not None:
            self.update_params(params)
        return super().forward(*args, **kwargs)

    def parameters(self, recurse: bool = True, time: int | None = None) -> Iterator[Any]:
        """The fast weights, including those of all submodules.

        Args:
            recurse: ignored.
            time: the number of steps after which to return them; the current ones by default.

        Raises:
            ValueError: if those of an earlier step were not kept.
        """
        if time not in (None, -1, 0) and not self.track_higher_grads:
            raise ValueError(
                "expected time to be None, -1 or 0, since earlier fast weights are not kept with "
                f"track_higher_grads=False; got time={time}."
            )
        return iter(self._fast_params[-1 if time is None else time])

    @property
    def fast_params(self) -> list[Tensor]:
        """The current fast weights."""
        return self._fast_params[-1]

    @property
    def init_fast_params(self) -> list[Tensor]:
        """The initial fast weights.

        Raises:
            ValueError: if `track_higher_grads` is false; they are then not kept.
        """
        if not self.track_higher_grads:
            raise ValueError(
                "the initial fast weights are not kept with track_higher_grads=False. Set it to "
                "True in monkeypatch or innerloop_ctx."
            )
        return self._fast_params[0]

    def update_params(self, params: Iterable[Tensor]) -> None:
        """Sets the current fast weights.

        Raises:
            ValueError: if their number differs from the number of parameters.
        """
        new = list(params)
        if len(new) != len(self.fast_params):
            raise ValueError(f"expected {len(self.fast_params)} fast weights; got {len(new)}.")
        if not self.track_higher_grads:
            self._fast_params.clear()
        self._fast_params.append(new)
        for module, name, index in self._slots:
            held: dict[str, Any] = module._parameters
            held[name] = new[index]
        for module in self.modules():
            refresh(module)


def monkeypatch(
    module: nn.Module,
    device: torch.device | str | None = None,
    copy_initial_weights: bool = True,
    track_higher_grads: bool = True,
) -> Any:
    """A functional copy of a module.

    The class of the copy derives from that of the module and from
    [`FunctionalModule`][fastmeta.compat.higher.functional_module.FunctionalModule]. Its buffers are
    copies.

    Args:
        module: the module, which is not changed.
        device: the device of the copy; that of the module by default.
        copy_initial_weights: whether the initial fast weights are detached copies; otherwise
            gradients reach the parameters of the module.
        track_higher_grads: whether to keep the fast weights of all steps.
    """
    params = list(module.parameters())
    fast = [
        p.detach().clone().to(device).requires_grad_(p.requires_grad)
        if copy_initial_weights
        else p.clone().to(device)
        for p in params
    ]
    copy: Any = clone_module(module, dict(zip(params, fast, strict=True)))
    number = {p: i for i, p in enumerate(fast)}
    copy.__class__ = type(
        f"Functional{type(module).__name__}", (FunctionalModule, type(module)), {}
    )
    parts = list(copy.modules())
    copy.track_higher_grads = track_higher_grads
    copy._fast_params = [fast]
    copy._slots = [
        (part, name, number[p])
        for part in parts
        for name, p in part._parameters.items()
        if p is not None
    ]
    for part in parts:
        part._buffers = {
            name: None if b is None else b.detach().clone().to(device)
            for name, b in part._buffers.items()
        }
    return copy
