"""Non-finite tasks are left out of every aggregation and every correction."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastmeta import metagrad
from fastmeta.aggregation import AGGREGATIONS
from fastmeta.learners import nonfinite
from fastmeta.metagrad import FirstOrder
from tests.helpers.nonfinite import corrupt, learner_of, without
from tests.helpers.problems import mlp, tasks

AGGREGATION_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "agreement": [{}, {"of": "meta"}],
    "gsl": [{}, {"lam_2": 0.3}, {"rule": "linear", "lam_2": 0.3}],
}
CORRECTIONS = [
    FirstOrder(),
    metagrad.GSLCorrection(scope="layer"),
    metagrad.LayerWeights(),
    metagrad.ElementWeights(eta=50.0),
    metagrad.CurvatureGSL(),
    metagrad.CalibratedGSL(every=1),
]


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("name", AGGREGATIONS)
def test_every_aggregation_leaves_non_finite_tasks_out(
    name: str, on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not on_host:
        monkeypatch.setattr(nonfinite, "_on_host", lambda tensor: False)
    batch = tasks(3)  # of two tasks, which PCGrad treats in one order
    for options in AGGREGATION_OPTIONS.get(name, [{}]):
        module, aggregation = mlp().double(), AGGREGATIONS[name](**options)
        components = {"metagrad": metagrad.GSLCorrection(), "aggregation": aggregation}
        found, _ = learner_of(module, **components).meta_gradient(corrupt(batch, 1))
        expected, _ = learner_of(module, "keep", **components).meta_gradient(without(batch, 1))
        assert expected.any()
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("way", CORRECTIONS, ids=lambda way: type(way).__name__)
def test_every_correction_leaves_non_finite_tasks_out(way: metagrad.MetaGradient) -> None:
    batch = tasks(3)
    module = mlp().double()
    learner, alone = (learner_of(module, policy, metagrad=way) for policy in ("skip", "keep"))
    for _ in range(3):
        found, _ = learner.meta_gradient(corrupt(batch, 2))
        expected, _ = alone.meta_gradient(without(batch, 2))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
