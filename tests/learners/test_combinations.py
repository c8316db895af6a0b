"""Every two of adaptation, meta-gradient and aggregation learn together, on sines and images.

The third component is the default: SGD, the exact meta-gradient, or the mean over tasks.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from fastmeta import TaskBatch
from fastmeta.adaptation import ADAPTATIONS
from fastmeta.aggregation import AGGREGATIONS
from fastmeta.data import SineTasks
from fastmeta.learners import build
from fastmeta.metagrad import METAGRADS
from fastmeta.models import MLP, Conv4
from tests.helpers.problems import CLOSED_FORM, OF_CLOSED_FORM

# The full correction (eta = 1) need not lower the loss of a few steps on one meta-batch.
METAGRAD_OPTIONS = {
    "augmented": {"copies": 1, "keep": 0.8},
    "bootstrapped": {"weight": 0.1},
    "gsl": {"eta": 0.3},
    "local-moml": {"local_steps": 2},
}
# Where a gradient is zero, the derivative of Adam's step is lr / eps.
ADAPTATION_OPTIONS = {
    "adam": {"eps": 1e-2},
    "lambda": {"pattern": "01"},
    "ntk": {"time": 1.0},  # infinite time is too much for 5 points and 8 units
    "pruned-support": {"keep": 0.5},
    "rmsprop": {"alpha": 0.5, "eps": 1e-2},
}


def images() -> TaskBatch:
    x, y = torch.randn(2, 18, 1, 4, 4), torch.arange(3).repeat(2, 6)
    x = x + y[..., None, None, None]  # classes differ in brightness
    ids = torch.tensor([[4, 0, 2], [1, 0, 4]])
    return TaskBatch(x[:, :9], y[:, :9], x[:, 9:], y[:, 9:], ids)


# A regression has no classes, nor convolutions, nor without a grid ids, which MOML needs; the
# aggregations combine what others test on sines.
IMAGES_ALONE = {"augmented", "class-weights", "guarded", "local-moml", "log-loss", "moml", "spsa"}
AGGREGATION_OPTIONS = {"agreement": {"of": "meta"}}
# These change losses, which aggregations do not see; one of the two needs support gradients.
OF_LOSSES, AGGREGATIONS_OF_LOSSES = {"bootstrapped", "pruned-support"}, {"mean", "gsl"}


def composes(adaptation: str, metagrad: str, aggregation: str, tasks: str) -> bool:
    # Every pair of two components, with the default of the third.
    if adaptation != "sgd" and metagrad != "exact" and aggregation != "mean":
        return False
    if tasks == "sine" and IMAGES_ALONE.intersection([metagrad, aggregation]):
        return False
    # Aggregations see the same rows of these as of others.
    restricted = bool({"leap", "warpgrad"}.intersection([adaptation, metagrad]))
    if restricted and aggregation not in ("agreement", "mean"):
        return False
    if OF_LOSSES.intersection([adaptation, metagrad]) and aggregation not in AGGREGATIONS_OF_LOSSES:
        return False
    return adaptation not in CLOSED_FORM or metagrad in ("exact", *OF_CLOSED_FORM)


COMBINATIONS = [
    combination
    for combination in product(ADAPTATIONS, METAGRADS, AGGREGATIONS, ["sine", "images"])
    if composes(*combination)
]


@pytest.mark.parametrize(("adaptation", "metagrad", "aggregation", "tasks"), COMBINATIONS)
def test_ten_steps(adaptation: str, metagrad: str, aggregation: str, tasks: str) -> None:
    torch.manual_seed(0)  # ten steps must suffice for this seed
    if tasks == "sine":
        module, loss = MLP(1, 1, (8,), warp=adaptation == "warpgrad"), F.mse_loss
        batch = SineTasks(2, 5, 5, seed=0)[0]
    else:
        module = Conv4(1, 4, 3, hidden=4, warp=adaptation == "warpgrad")
        loss, batch = F.cross_entropy, images()
    # Central differences of ReLUs in float32 depend on the last bit.
    module.double()
    x, query_x = batch.support_x.double(), batch.query_x.double()
    y, query_y = (
        t.double() if t.is_floating_point() else t for t in (batch.support_y, batch.query_y)
    )
    batch = TaskBatch(x, y, query_x, query_y, batch.ids)
    closed_form = adaptation in CLOSED_FORM
    options = dict(ADAPTATION_OPTIONS.get(adaptation, {}))
    if tasks == "images" and adaptation == "lambda":
        options["pattern"] = "00011"
    learner = build(
        "maml",
        module,
        loss,
        inner_lr=0.01,
        inner_steps=1,
        adaptation=adaptation,
        metagrad=metagrad,
        aggregation=aggregation,
        adaptation_options=options,
        metagrad_options=METAGRAD_OPTIONS.get(metagrad, {}),
        aggregation_options=AGGREGATION_OPTIONS.get(aggregation) if closed_form else None,
        optimizer=lambda params: torch.optim.Adam(params, lr=0.02),
    )
    losses = [learner.step(batch).query_loss.mean().item() for _ in range(10)]
    assert losses[-1] < losses[0]
