"""Parameters that are packed together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from fastmeta.gradients import GradientBuffer


class Bucket:
    """Parameters of one dtype and device, with their packed query and support rows."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params = params
        self.query = GradientBuffer(params)
        self.inner = GradientBuffer(params)


def buckets_of(params: Iterable[Tensor]) -> list[Bucket]:
    """Parameters by dtype and device, in order."""
    kinds: dict[Any, list[Tensor]] = defaultdict(list)
    for param in params:
        kinds[param.dtype, param.device].append(param)
    return [Bucket(alike) for alike in kinds.values()]
