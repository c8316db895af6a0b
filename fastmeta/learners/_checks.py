"""Checks of a learner's arguments."""

from __future__ import annotations

from typing import get_args

from fastmeta.adaptation import ClosedForm
from fastmeta.distributed import Sharding
from fastmeta.engines import StepSpec
from fastmeta.functional import Checkpoint, CoLearner, Head
from fastmeta.metagrad import MetaGradient
from fastmeta.metagrad.wrapper import innermost
from fastmeta.tasks import MetaBatch


def check_components(
    metagrad: MetaGradient, checkpoint: Checkpoint, co_learner: CoLearner | None
) -> MetaGradient:
    """The meta-gradient as it is computed; rejects combinations without benefit or meaning.

    Raises:
        ValueError: for activation checkpointing that saves no memory, or a co-learner with
            Reptile or Leap.
    """
    if not isinstance(checkpoint, bool) and checkpoint != "second-order":
        raise ValueError(f"checkpoint must be True, False or 'second-order'; got {checkpoint!r}.")
    computed = metagrad.checkpointed() if checkpoint else metagrad
    if computed is None:
        raise ValueError(
            f"checkpoint={checkpoint!r} saves no memory with this metagrad."
            f"{type(metagrad).__name__}, whose second derivatives keep the recomputed activations; "
            "expected Exact, Recursion with hvp='forward' or a first-order meta-gradient such as "
            "FirstOrder, GSL or Reptile."
        )
    if checkpoint == "second-order" and not computed.second_order:
        raise ValueError(
            "checkpoint='second-order' has no effect with this metagrad."
            f"{type(metagrad).__name__}, which takes no second derivatives; expected True or False."
        )
    if co_learner is not None and not metagrad.has_query_loss:
        raise ValueError(
            "a co-learner learns from a query loss that the inner loop does not train on, and "
            f"metagrad.{type(innermost(metagrad)).__name__} has none; expected another "
            "meta-gradient, such as FirstOrder."
        )
    return computed


def check_closed_form(spec: StepSpec) -> None:
    """Rejects components that need the inner gradients which a closed form does not have.

    Raises:
        ValueError: in this case, or with a co-learner.
    """
    if not isinstance(spec.adaptation, ClosedForm):
        return
    name, metagrad = f"adaptation.{type(spec.adaptation).__name__}", spec.metagrad
    if not metagrad.closed_form:
        raise ValueError(
            f"{name} adapts in closed form, without inner gradients, which metagrad."
            f"{type(metagrad).__name__} needs; expected metagrad.Exact of all layers, without "
            "activation checkpointing."
        )
    if spec.needs_support_gradients:
        raise ValueError(
            f"{name} adapts in closed form, without inner gradients, which aggregation."
            f"{type(spec.aggregation).__name__} compares; expected one of meta-gradients, such as "
            "GradientAgreement(of='meta')."
        )
    if spec.model.co_learner is not None:
        raise ValueError(f"{name} fits the network's outputs alone; expected no co-learner.")


def check_head(head: str, co_learner: CoLearner | None) -> None:
    """Rejects an unknown head, and one of a co-learner without a co-learner.

    Raises:
        ValueError: in either case.
    """
    if head not in get_args(Head):
        raise ValueError(f"head must be one of {', '.join(get_args(Head))}; got {head!r}.")
    if head != "main" and co_learner is None:
        raise ValueError(f"head={head!r} needs a learner with a co_learner; expected 'main'.")


def check_tasks(batch: MetaBatch, sharding: Sharding | None = None) -> None:
    """Rejects an empty meta-batch, and one that is not this rank's part.

    Raises:
        ValueError: in either case.
    """
    if len(batch) == 0:
        raise ValueError("the meta-batch has no tasks; expected at least one.")
    if sharding is not None:
        sharding.check_own(batch)
