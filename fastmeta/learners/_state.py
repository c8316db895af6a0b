"""Saving and restoring the state of a learner."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from fastmeta.learners.learner import MetaLearner


def state_of(learner: MetaLearner) -> dict[str, Any]:
    """The state of a learner, see `MetaLearner.state_dict`."""
    co_learner = learner.co_learner
    return {
        "module": learner.module.state_dict(),
        **({} if co_learner is None else {"co_learner": co_learner.head.state_dict()}),
        "rates": [rate.detach() for rate in learner.adaptation.rates],
        "optimizer": learner.optimizer.state_dict(),
        "metagrad": {"step": learner.steps_taken, **learner._state},
        "aggregation": dict(learner._aggregation_state),
        "non_finite_guard": learner.non_finite_guard.state_dict(),
    }


def load_state(learner: MetaLearner, state: dict[str, Any]) -> None:
    """Restores a state, or leaves the learner unchanged if it does not fit."""
    before = copy.deepcopy(state_of(learner))
    try:
        _load(learner, state)
    except Exception:
        _load(learner, before)
        raise


def _load(learner: MetaLearner, state: dict[str, Any]) -> None:
    carried = dict(state["metagrad"])
    steps = int(carried.pop("step"))
    learner.metagrad.check_state(carried)
    of_tasks = dict(state.get("aggregation", {}))  # those of older versions have none
    learner.aggregation.check_state(of_tasks)
    rates, saved_rates = learner.adaptation.rates, state["rates"]
    if [r.shape for r in rates] != [s.shape for s in saved_rates]:
        raise ValueError(
            f"the state has {len(saved_rates)} learned rates of the shapes "
            f"{[tuple(s.shape) for s in saved_rates]}; adaptation."
            f"{type(learner.adaptation).__name__} has {len(rates)} of "
            f"{[tuple(r.shape) for r in rates]}. Load it into a learner with the adaptation that "
            "it was saved with."
        )
    if learner.co_learner is not None:
        learner.co_learner.head.load_state_dict(state["co_learner"])
    learner.module.load_state_dict(state["module"])
    with torch.no_grad():
        for rate, saved in zip(rates, saved_rates, strict=True):
            rate.copy_(saved)
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.non_finite_guard.load_state_dict(state["non_finite_guard"])
    learner.steps_taken, learner._state, learner._aggregation_state = steps, carried, of_tasks
