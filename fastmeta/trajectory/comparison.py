"""Approximate meta-gradients of a training run, compared with the exact one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from fastmeta.adaptation import Adaptation
from fastmeta.functional.rng import preserve_rng
from fastmeta.gradients import Agreement, FlatLayout
from fastmeta.gradients.agreement import agreement
from fastmeta.trajectory._trees import Leaves
from fastmeta.trajectory.function import metagradient
from fastmeta.trajectory.result import Metagradient


@dataclass(frozen=True)
class Comparison:
    """An approximate meta-gradient of a run beside the exact one.

    Attributes:
        params: agreement of the derivatives with respect to the initial parameters.
        meta: the same of the meta-parameters; `None` if there are none.
        own: the approximate meta-gradient.
        exact: the exact one.
    """

    params: Agreement
    meta: Agreement | None
    own: Metagradient
    exact: Metagradient

    @override
    def __str__(self) -> str:
        """A few readable lines; waits for the device."""
        lines = [f"left out: {self.own.info.dropped}", f"params: {self.params}"]
        if self.meta is not None:
            lines.append(f"meta: {self.meta}")
        if self.own.info.residual is not None:
            lines.append(f"residual of the solver: {self.own.info.residual:.2g}")
        return "\n".join(lines)


def compare_with_exact(
    inner_loss: Callable[[Any, Any, Any], Tensor],
    outer_loss: Callable[..., Tensor],
    params: Any,
    meta: Any,
    batches: Iterable[Any],
    *,
    optimizer: Adaptation,
    buffers: Iterable[Tensor] = (),
    **options: Any,
) -> Comparison:
    """Compares the result of [`metagradient`][fastmeta.metagradient] with the exact one.

    Both use the same random numbers and buffers, which are unchanged afterwards.

    Args:
        inner_loss: see `metagradient`.
        outer_loss: see `metagradient`.
        params: see `metagradient`.
        meta: see `metagradient`.
        batches: see `metagradient`.
        optimizer: see `metagradient`.
        buffers: see `metagradient`.
        **options: the others of `metagradient`. The reference has these without `method` and
            `truncate`, and `hvp="reverse"`.

    Raises:
        ValueError: as `metagradient`.
    """
    own_batches = batches if isinstance(batches, Sequence) else list(batches)
    places = list(buffers)
    initial, others = Leaves(params, "params"), Leaves(meta, "meta")
    reference = {**options, "method": None, "truncate": None, "hvp": "reverse"}
    device = initial.tensors[0].device if initial.tensors else torch.device("cpu")
    found = []
    for chosen in (options, reference):
        values = [b.detach().clone() for b in places]
        with preserve_rng(device):
            found.append(
                metagradient(
                    inner_loss,
                    outer_loss,
                    params,
                    meta,
                    own_batches,
                    optimizer=optimizer,
                    buffers=places,
                    **chosen,
                )
            )
        with torch.no_grad():
            for place, value in zip(places, values, strict=True):
                place.copy_(value)
    own, exact = found
    return Comparison(
        _agreement("params", initial, own.params, exact.params),
        _agreement("meta", others, own.meta, exact.meta) if others.tensors else None,
        own,
        exact,
    )


def _agreement(what: str, leaves: Leaves, own: Any, exact: Any) -> Agreement:
    names = [name or what for name in leaves.names]
    flat_own, flat_exact = (
        torch.cat([t.flatten() for t in tree_leaves(tree)]) for tree in (own, exact)
    )
    return agreement(flat_own, flat_exact, FlatLayout.of(leaves.tensors).bounds, names)
