"""higher 0.2.1's interface: differentiable inner loops with torch optimizers.

`from fastmeta.compat import higher` replaces `import higher`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastmeta.compat._missing import register
from fastmeta.compat.higher import optim
from fastmeta.compat.higher._unsupported import INSTEAD
from fastmeta.compat.higher.functional_module import monkeypatch
from fastmeta.compat.higher.optim import Override, get_diff_optim

__all__ = ["get_diff_optim", "innerloop_ctx", "monkeypatch", "optim"]


@contextmanager
def innerloop_ctx(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    device: torch.device | str | None = None,
    copy_initial_weights: bool = True,
    override: Override | None = None,
    track_higher_grads: bool = True,
) -> Iterator[tuple[Any, optim.DifferentiableOptimizer]]:
    """A functional copy of the model and a differentiable optimizer for it.

    Args:
        model: the model, which is not changed.
        opt: its optimizer (SGD, Adam or AdamW), which is not changed.
        device: the device of the copy; that of the model by default.
        copy_initial_weights: whether the initial fast weights are detached copies; use `False`
            for MAML, so that gradients reach the parameters of the model.
        override: hyperparameters to override in the optimizer, see
            [`fastmeta.compat.higher.optim.DifferentiableOptimizer`][].
        track_higher_grads: whether steps can be differentiated; earlier fast weights are then kept.

    Raises:
        ValueError: if the optimizer or one of its options is not supported.
    """
    fmodel = monkeypatch(model, device, copy_initial_weights, track_higher_grads)
    yield (
        fmodel,
        get_diff_optim(opt, model.parameters(), fmodel, device, override, track_higher_grads),
    )


register(__name__, {}, INSTEAD)
