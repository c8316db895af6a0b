"""Plain autograd, with torch's composition of attention: the fused one has no second derivative."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks._common.contenders import plain_autograd
from benchmarks.transformers.cases import Case
from benchmarks.transformers.contenders import attention_calls


@sdpa_kernel(SDPBackend.MATH)
def make(case: Case, module: Any, batch: Any) -> Any:
    if case.network == "attention":
        attention = partial(F.scaled_dot_product_attention, is_causal=case.causal)
        run = attention_calls.double_backward(case, batch, attention)
    else:
        run = plain_autograd.make(case, module, batch)
    return sdpa_kernel(SDPBackend.MATH)(run)
