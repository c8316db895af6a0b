"""Compiled ops in place of `torch.nn.functional`, where second derivatives are taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastmeta.functional import _attention, _block
from fastmeta.functional.module import Loss

# Each takes torch's function, which it calls where the op cannot take the arguments, and its
# arguments.
_REPLACEMENTS: dict[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": _attention.attention,
    "layer_norm": _block.layer_norm,
    "rms_norm": _block.rms_norm,
    "gelu": _block.gelu,
    "silu": _block.silu,
    "cross_entropy": _block.cross_entropy,
    "linear_cross_entropy": _block.linear_cross_entropy,
}

# Of this thread: which functions shall be replaced in modules and losses, and which are replaced.
_wanted: ContextVar[frozenset[str]] = ContextVar("wanted", default=frozenset())
_replaced: ContextVar[frozenset[str]] = ContextVar("replaced", default=frozenset())


@contextmanager
def twice_differentiable(*, attention_only: bool = False) -> Iterator[None]:
    """Attention in this context has second derivatives, unlike torch's fused kernels.

    It is [`fastmeta.ops.attention`][] within `compiled_calls`, where that supports the arguments,
    and torch's plain composition elsewhere.

    Args:
        attention_only: whether to leave the other functions of `compiled_calls` to torch.
    """
    own = ["scaled_dot_product_attention"] if attention_only else _REPLACEMENTS
    token = _wanted.set(_wanted.get().union(own))
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _wanted.reset(token)


class _Patch:
    """Replaces the functions as long as any thread needs it.

    A `TorchFunctionMode` would not see the calls within `F.multi_head_attention_forward`, and slow
    down all others.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._users = 0
        self._own = {name: partial(_call, self, name) for name in _REPLACEMENTS if hasattr(F, name)}
        self.torchs: dict[str, Any] = {name: getattr(F, name) for name in self._own}

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                for name, own in self._own.items():
                    self.torchs[name] = getattr(F, name)
                    setattr(F, name, own)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                for name, own in self._own.items():
                    if getattr(F, name) is own:
                        setattr(F, name, self.torchs[name])


def _call(patch: _Patch, name: str, *args: Any, **kwargs: Any) -> Any:
    # In another thread the patch may not be wanted.
    if torch.compiler.is_compiling() or name not in _replaced.get():
        return patch.torchs[name](*args, **kwargs)
    return _REPLACEMENTS[name](patch.torchs[name], *args, **kwargs)


_patch = _Patch()


@contextmanager
def compiled_calls() -> Iterator[None]:
    """Calls of these functions are compiled ops where second derivatives are taken."""
    wanted = _wanted.get()
    if not wanted:
        yield
        return
    token = _replaced.set(wanted)
    try:
        with _patch:
            yield
    finally:
        _replaced.reset(token)


def compiled_loss(loss: Loss) -> Loss:
    """The loss within `compiled_calls`; it may also be one of these functions itself."""
    own = next((name for name, torchs in _patch.torchs.items() if torchs is loss), None)

    def run(output: Any, y: Any) -> Tensor:
        with compiled_calls():
            value: Tensor = (loss if own is None else getattr(F, own))(output, y)
        return value

    return run
