"""Learners of one module with other components."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastmeta.learners._trainable import TrainableStep, learned_rates
from fastmeta.learners.nonfinite import NonFiniteGuard

if TYPE_CHECKING:
    from fastmeta.learners.learner import MetaLearner


def replace_components(learner: MetaLearner, given: Mapping[str, Any]) -> MetaLearner:
    """A copy of the learner with other components, see `MetaLearner.with_components`.

    Args:
        learner: the learner, with which the copy shares the module and everything else.
        given: the components to replace, by their names in `fastmeta.engines.StepSpec`.
    """
    model, spec = learner._built.model, replace(learner._built, **given)
    if "adaptation" in given:
        spec.adaptation.bind(model.params, model.names)
    if model.checkpoint:
        computed = spec.metagrad.checkpointed()
        model = copy.copy(model)
        model.checkpoint = model.checkpoint if computed is not None else False
        spec = replace(spec, metagrad=computed or spec.metagrad)
    other = copy.copy(learner)
    other._state = dict(learner._state) if spec.metagrad is learner.metagrad else {}
    kept = spec.aggregation is learner.aggregation
    other._aggregation_state = dict(learner._aggregation_state) if kept else {}
    other._learned = [*model.params, *learned_rates(spec.adaptation)]
    other.non_finite_guard = NonFiniteGuard(learner.non_finite_guard.policy, learner.sharding)
    other._built = replace(spec, model=model)
    other._step = TrainableStep.of(other._built, learner.engine)
    return other
