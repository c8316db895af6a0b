"""MAML, FOMAML, Reptile and GSL as classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn

from fastmeta import metagrad as meta
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Aggregation, GslWeights, Mean
from fastmeta.distributed import Sharding
from fastmeta.engines import EngineName, Loss
from fastmeta.functional import Checkpoint, CoLearner, Penalty
from fastmeta.learners.learner import MetaLearner, OptimizerFactory
from fastmeta.learners.nonfinite import NonFinite
from fastmeta.metagrad.gsl.variants import DEFAULT_VARIANT

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LearnerOptions(TypedDict, total=False):
    """Options of every learner, see [`fastmeta.MetaLearner`][]."""

    optimizer: OptimizerFactory | None
    engine: EngineName
    fuse: bool
    autocast: torch.dtype | None
    checkpoint: Checkpoint
    co_learner: CoLearner | None
    penalty: Penalty | None
    non_finite: NonFinite
    sharding: Sharding | None
    check_precision: bool


class MAML(MetaLearner):
    """Model-Agnostic Meta-Learning with the exact meta-gradient (Finn et al. 2017).

    Args:
        module: the network whose initialisation is learned.
        loss: from outputs and targets to a scalar.
        inner_lr: learning rate of the inner loop.
        inner_steps: inner steps during meta-training.
        aggregation: the task aggregation; the mean over tasks by default.
        **options: `optimizer`, `engine`, `fuse`, `autocast`, `checkpoint`, `co_learner`,
            `penalty`, `non_finite`, `sharding` and `check_precision` of [`fastmeta.MetaLearner`][].
    """

    _metagrad: type[meta.MetaGradient] = meta.Exact

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        *,
        inner_lr: float,
        inner_steps: int = 1,
        aggregation: Aggregation | None = None,
        **options: Unpack[LearnerOptions],
    ) -> None:
        super().__init__(
            module,
            loss,
            adaptation=SGD(inner_lr, inner_steps),
            metagrad=self._metagrad(),
            aggregation=Mean() if aggregation is None else aggregation,
            **options,
        )


class FOMAML(MAML):
    """First-order MAML (Finn et al. 2017, section 5.2); arguments as [`MAML`][fastmeta.MAML]."""

    _metagrad = meta.FirstOrder


class Reptile(MetaLearner):
    """Reptile (Nichol et al. 2018); arguments as [`MAML`][fastmeta.MAML].

    With one inner step it is joint training. With the optimizer `lambda p: torch.optim.SGD(p,
    lr=e)` it is the paper's `theta + e (theta_K - theta)`.

    Args:
        module: the network whose initialisation is learned.
        loss: from outputs and targets to a scalar.
        inner_lr: learning rate of the inner loop.
        inner_steps: inner steps during meta-training.
        aggregation: the task aggregation; the mean over tasks by default.
        use_query: train on support and query examples together, as the paper does.
        **options: see [`MAML`][fastmeta.MAML].
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        *,
        inner_lr: float,
        inner_steps: int = 5,
        aggregation: Aggregation | None = None,
        use_query: bool = True,
        **options: Unpack[LearnerOptions],
    ) -> None:
        super().__init__(
            module,
            loss,
            adaptation=SGD(inner_lr, inner_steps),
            metagrad=meta.Reptile(use_query),
            aggregation=Mean() if aggregation is None else aggregation,
            **options,
        )


class GSL(MetaLearner):
    """Our reconstruction of GSL/AHE (gradient similarity loss, Tak & Hong 2024), all variants.

    Args:
        module: the network whose initialisation is learned.
        loss: from outputs and targets to a scalar.
        inner_lr: learning rate of the inner loop.
        inner_steps: inner steps during meta-training.
        variant: see [`fastmeta.metagrad.gsl_variant`][]; `"task-weights"` (R3) is
            [`fastmeta.aggregation.GslWeights`][] with FOMAML's meta-gradient.
        **options: further options of the variant, such as `eta`, and those of
            [`MAML`][fastmeta.MAML].
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        *,
        inner_lr: float,
        inner_steps: int = 1,
        variant: str = DEFAULT_VARIANT,
        **options: Any,
    ) -> None:
        rule = {k: v for k, v in options.items() if k not in LearnerOptions.__annotations__}
        by_task = meta.VARIANT_ALIASES.get(variant, variant) == "task-weights"
        super().__init__(
            module,
            loss,
            adaptation=SGD(inner_lr, inner_steps),
            metagrad=meta.FirstOrder() if by_task else meta.gsl_variant(variant, **rule),
            aggregation=GslWeights(**rule) if by_task else Mean(),
            **{k: v for k, v in options.items() if k not in rule},
        )
