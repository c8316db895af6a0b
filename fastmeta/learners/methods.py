"""The methods by name: each a combination of the three rooms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastmeta import metagrad as meta
from fastmeta.adaptation import SGD
from fastmeta.aggregation import GslWeights, Mean
from fastmeta.engines import EngineName, Loss
from fastmeta.learners.learner import MetaLearner, OptimizerFactory


class _Classic(MetaLearner):
    """Inner gradient descent, one meta-gradient without options, and the mean over tasks."""

    _metagrad: type[meta.MetaGradient]

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        *,
        inner_lr: float,
        inner_steps: int = 1,
        optimizer: OptimizerFactory | None = None,
        engine: EngineName = "auto",
        fuse: bool = True,
        autocast: torch.dtype | None = None,
        checkpoint: bool = False,
    ) -> None:
        super().__init__(
            module,
            loss,
            adaptation=SGD(inner_lr, inner_steps),
            metagrad=self._metagrad(),
            aggregation=Mean(),
            optimizer=optimizer,
            engine=engine,
            fuse=fuse,
            autocast=autocast,
            checkpoint=checkpoint,
        )


class MAML(_Classic):
    """Model-Agnostic Meta-Learning with the exact meta-gradient (Finn et al. 2017).

    Args:
        module: the network whose initialisation is learned.
        loss: from outputs and targets to a scalar.
        inner_lr: learning rate of the inner loop.
        inner_steps: inner steps during meta-training.
        optimizer: makes the outer optimizer; Adam with 1e-3 by default.
        engine: see :class:`fastmeta.MetaLearner`.
        fuse: see :class:`fastmeta.MetaLearner`.
        autocast: see :class:`fastmeta.MetaLearner`.
        checkpoint: see :class:`fastmeta.MetaLearner`; refused by MAML, which is of second
            order.
    """

    _metagrad = meta.Exact


class FOMAML(_Classic):
    """First-order MAML (Finn et al. 2017, section 5.2); arguments as :class:`MAML`."""

    _metagrad = meta.FirstOrder


class Reptile(MetaLearner):
    """Reptile (Nichol et al. 2018); arguments as :class:`MAML`.

    Args:
        module: the network whose initialisation is learned.
        loss: from outputs and targets to a scalar.
        inner_lr: learning rate of the inner loop.
        inner_steps: inner steps during meta-training; with one step it is joint training.
        optimizer: makes the outer optimizer; ``lambda p: torch.optim.SGD(p, lr=e)`` is the paper's
            ``theta + e (theta_K - theta)``, Adam with 1e-3 the default.
        engine: see :class:`fastmeta.MetaLearner`.
        fuse: see :class:`fastmeta.MetaLearner`.
        autocast: see :class:`fastmeta.MetaLearner`.
        checkpoint: see :class:`fastmeta.MetaLearner`.
        use_query: train on support and query examples together, as the paper does.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        *,
        inner_lr: float,
        inner_steps: int = 5,
        optimizer: OptimizerFactory | None = None,
        engine: EngineName = "auto",
        fuse: bool = True,
        autocast: torch.dtype | None = None,
        checkpoint: bool = False,
        use_query: bool = True,
    ) -> None:
        super().__init__(
            module,
            loss,
            adaptation=SGD(inner_lr, inner_steps),
            metagrad=meta.Reptile(use_query),
            aggregation=Mean(),
            optimizer=optimizer,
            engine=engine,
            fuse=fuse,
            autocast=autocast,
            checkpoint=checkpoint,
        )


class GSL(MetaLearner):
    """Our reconstruction of GSL/AHE (Tak & Hong 2024): FOMAML's cost, corrected gradients.

    Args:
        module: the network whose initialisation is learned.
        loss: from outputs and targets to a scalar.
        inner_lr: learning rate of the inner loop.
        inner_steps: inner steps during meta-training.
        optimizer: makes the outer optimizer; Adam with 1e-3 by default.
        engine: see :class:`fastmeta.MetaLearner`.
        fuse: see :class:`fastmeta.MetaLearner`.
        autocast: see :class:`fastmeta.MetaLearner`.
        checkpoint: see :class:`fastmeta.MetaLearner`.
        variant: R0, R1, R2 or R3, see :class:`fastmeta.metagrad.GslRule`.
        **options: further options of :class:`fastmeta.metagrad.GslRule` (R3: ``lam_c``, ``lam_2``
            and ``tau``).
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        *,
        inner_lr: float,
        inner_steps: int = 1,
        optimizer: OptimizerFactory | None = None,
        engine: EngineName = "auto",
        fuse: bool = True,
        autocast: torch.dtype | None = None,
        checkpoint: bool = False,
        variant: str = "R1",
        **options: Any,
    ) -> None:
        by_task = variant == "R3"
        super().__init__(
            module,
            loss,
            adaptation=SGD(inner_lr, inner_steps),
            metagrad=meta.FirstOrder() if by_task else meta.GSL(variant=variant, **options),
            aggregation=GslWeights(**options) if by_task else Mean(),
            optimizer=optimizer,
            engine=engine,
            fuse=fuse,
            autocast=autocast,
            checkpoint=checkpoint,
        )


METHODS: dict[str, Callable[..., MetaLearner]] = {
    "fomaml": FOMAML,
    "gsl": GSL,
    "maml": MAML,
    "reptile": Reptile,
}


def build(method: str, module: nn.Module, loss: Loss, **options: Any) -> MetaLearner:
    """The learner a configuration names.

    Args:
        method: a key of :data:`METHODS`.
        module: the network whose initialisation is learned.
        loss: from outputs and targets to a scalar.
        **options: of the method.

    Raises:
        ValueError: if the method is unknown.
        TypeError: if it has no such option.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}.")
    return METHODS[method](module, loss, **options)
