"""What the differentiable ops share.

The compiled ops carry no autograd formula: registered ones break ``torch.func``. Each op is instead
a pair of ``autograd.Function``: ``X`` with ``setup_context``, a backward of differentiable torch
ops and a ``vmap`` rule, and ``XEager(X)`` that adds ``jvp``, which ``torch.compile`` cannot trace.
Where nothing watches, the compiled op is called directly, at a tenth of the overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def watched(*tensors: Tensor) -> bool:
    """Whether autograd, a ``torch.func`` transform or forward-mode AD may look at this call."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    )


def apply(function: Any, eager: Any, *args: Any) -> Any:
    """Calls the variant that the surroundings can handle."""
    return (function if torch.compiler.is_compiling() else eager).apply(*args)


def loop_vmap(
    function: Callable[..., Any], info: Any, in_dims: Sequence[int | None], args: Sequence[Any]
) -> tuple[Any, Any]:
    """A ``vmap`` rule: one call an element, results stacked along a new first dimension."""
    results = [
        function(
            *(
                arg if dim is None else arg.select(dim, i)
                for arg, dim in zip(args, in_dims, strict=True)
            )
        )
        for i in range(info.batch_size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)
