"""Structures of tensors as lists of leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_unflatten


class Leaves:
    """The tensors of a structure of dicts, lists and tuples, in order.

    Args:
        tree: the structure.
        what: its name, for messages.

    Attributes:
        given: the tensors themselves.
        tensors: leaves with the same values that require a gradient.
        names: such as `net.0.weight`.

    Raises:
        ValueError: if a leaf is not a floating-point tensor.
    """

    def __init__(self, tree: Any, what: str) -> None:
        pairs, self._structure = tree_flatten_with_path(() if tree is None else tree)
        self._none = tree is None
        for path, leaf in pairs:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                kind = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ValueError(
                    f"{what}{keystr(path)} is {kind}; expected floating-point tensors in dicts, "
                    "lists and tuples."
                )
        self.given: list[Tensor] = [leaf for _, leaf in pairs]
        self.names = [".".join(map(_name, path)) for path, _ in pairs]
        self.tensors = [t.detach().requires_grad_() for t in self.given]

    def tree(self, leaves: Sequence[Any]) -> Any:
        """The structure with other leaves."""
        return None if self._none else tree_unflatten(list(leaves), self._structure)

    def filled(self, grads: Sequence[Tensor | None]) -> Any:
        """The structure with gradients; `None` means zero."""
        pairs = zip(grads, self.given, strict=True)
        return self.tree([torch.zeros_like(t) if g is None else g.detach() for g, t in pairs])


def _name(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
