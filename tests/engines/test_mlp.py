"""The MLP engine matches the loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta import FOMAML, GSL, MAML, MetaLearner, TaskBatch, metagrad
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Aggregation, GradientAgreement, GslWeights, Mean
from fastmeta.models import MLP
from tests.engines.mlp_cases import both, mlp
from tests.helpers.problems import tasks


def learner_with(
    way: metagrad.MetaGradient, aggregation: Aggregation | None = None
) -> Callable[..., MetaLearner]:
    return lambda module, loss, inner_lr, inner_steps, **options: MetaLearner(
        module,
        loss,
        adaptation=SGD(inner_lr, inner_steps),
        metagrad=way,
        aggregation=aggregation or Mean(),
        **options,
    )


METHODS: dict[str, Callable[..., MetaLearner]] = {
    "maml": MAML,
    "fomaml": FOMAML,
    "gsl": GSL,
    "gsl R1": lambda *a, **k: GSL(*a, variant="R1", **k),
    "gsl by layer": lambda *a, **k: GSL(*a, variant="R1", scope="layer", eta=0.3, **k),
    "gsl R2": lambda *a, **k: GSL(*a, variant="R2", eta=0.3, **k),
    "gsl R2p": lambda *a, **k: GSL(*a, variant="R2p", eta=9.0, **k),
    "gsl R3": lambda *a, **k: GSL(*a, variant="R3", **k),
    "agreement": learner_with(metagrad.Exact(), GradientAgreement()),
    "head": learner_with(metagrad.Exact("head")),
    "another pattern in each step": learner_with(metagrad.Recursion(layers="head/full/body")),
    "recursion": learner_with(metagrad.Recursion(graphs=0), GslWeights()),
    "similarity": learner_with(metagrad.GSL(-0.5)),
    "similarity L2": learner_with(metagrad.GSL(lam_d=0.0, lam_2=1.0)),
    "similarity cosine": learner_with(metagrad.GSL(lam_d=0.0, lam_c=1.0, layers="body")),
    "all similarities": learner_with(metagrad.GSL(0.8, 0.7, 0.4, 0.3, "warmup:4", "full/head")),
}


@pytest.mark.parametrize("method", METHODS)
def test_classification(method: str) -> None:
    both(METHODS[method], mlp().double(), F.cross_entropy, tasks(5))


@pytest.mark.parametrize("method", METHODS)
def test_regression(method: str) -> None:
    x = torch.randn(4, 9, 2, dtype=torch.float64)
    y = torch.sin(x @ torch.randn(2, 3, dtype=torch.float64))
    batch = TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:])
    both(METHODS[method], MLP(2, 3, (7, 5), nn.SiLU).double(), F.mse_loss, batch)


def test_without_inner_steps() -> None:
    module, batch = mlp().double(), tasks(2)
    (expected, by_loop), (found, by_mlp) = (
        MAML(module, F.cross_entropy, inner_lr=0.2, inner_steps=0, engine=engine).meta_gradient(
            batch
        )
        for engine in ("loop", "mlp")
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(by_mlp.support_loss, by_loop.support_loss)
    options = {"inner_lr": 0.2, "inner_steps": 0, "engine": "mlp"}
    torch.testing.assert_close(
        GSL(module, F.cross_entropy, **options).meta_gradient(batch)[0], expected
    )
    with pytest.raises(ValueError, match="took no step"):
        GSL(module, F.cross_entropy, variant="correction", **options).step(batch)


def test_training_is_the_same() -> None:
    batches = [tasks(4) for _ in range(8)]
    ends = []
    for engine in ("loop", "auto"):
        torch.manual_seed(3)
        module = mlp(nn.ELU).double()
        learner = GSL(module, F.cross_entropy, inner_lr=0.2, inner_steps=2, engine=engine)
        for batch in batches[: 4 + 4 * (engine == "loop")]:
            learner.step(batch)
        learner.engine = "mlp"
        for batch in batches[8 if engine == "loop" else 4 :]:
            learner.step(batch)
        ends.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def test_meta_batches_of_changing_size_and_engine() -> None:
    learner = MAML(mlp().double(), F.cross_entropy, inner_lr=0.2, inner_steps=2)
    for engine, count in (("mlp", 2), ("loop", 5), ("mlp", 3), ("loop", 7), ("auto", 1)):
        batch, learner.engine = tasks(count), engine
        expected, _ = MAML(
            learner.module, F.cross_entropy, inner_lr=0.2, inner_steps=2, engine="loop"
        ).meta_gradient(batch)
        torch.testing.assert_close(learner.meta_gradient(batch)[0], expected)
