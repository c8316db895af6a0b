"""The ``MAML`` wrapper of learn2learn, with torch's composition of attention."""

from __future__ import annotations

from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks._common.contenders import learn2learn_maml
from benchmarks.transformers.cases import Case


def make(case: Case, module: Any, batch: Any) -> Any:
    return sdpa_kernel(SDPBackend.MATH)(learn2learn_maml.make(case, module, batch))
