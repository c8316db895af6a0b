"""``fastmeta.metagradient`` of a training run."""

from __future__ import annotations

import tempfile
from typing import Any

from torch.func import functional_call

import fastmeta
from benchmarks.transformers.cases import Case
from fastmeta.adaptation import AdamW


def make(case: Case, module: Any, batch: Any, *, memory: Any, offload: bool = False) -> Any:
    """The meta-gradient.

    Args:
        case: the case.
        module: its network.
        batch: a batch per inner step, and the query set.
        memory: of ``metagradient``.
        offload: whether states are kept in files.
    """
    support_x, support_y, query_x, query_y = (part[0] for part in batch)
    batches = list(zip(support_x, support_y, strict=True))
    params = dict(module.named_parameters())
    optimizer = AdamW(**case.adamw)

    def inner(params: Any, _meta: Any, pair: Any) -> Any:
        return case.loss(functional_call(module, params, (pair[0],)), pair[1])

    def outer(params: Any, _meta: Any) -> Any:
        return inner(params, None, (query_x, query_y))

    def meta_gradient() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            found = fastmeta.metagradient(
                inner,
                outer,
                params,
                None,
                batches,
                optimizer=optimizer,
                memory=memory,
                offload=folder if offload else None,
            )
        return list(found.params.values())

    return meta_gradient
