"""Learners with autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastmeta import FOMAML, MAML, MetaLearner
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.metagrad import MetaGradient, Recursion
from tests.functional.checkpointing_cases import FIRST_ORDER, images
from tests.helpers.problems import WAYS, loss, tasks

AUTOCAST = {
    "maml": lambda m, **o: MAML(m, loss, inner_lr=0.1, inner_steps=2, **o),
    "recursion": lambda m, **o: exact(m, Recursion(), **o),
    "forward": lambda m, **o: exact(m, Recursion("forward"), **o),
    **{
        name: lambda m, learner=learner, **o: learner(m, loss, inner_lr=0.1, inner_steps=2, **o)
        for name, learner in FIRST_ORDER.items()
    },
}


def exact(module: nn.Module, metagrad: MetaGradient, **options: object) -> MetaLearner:
    return MetaLearner(
        module, loss, adaptation=SGD(0.1, 2), metagrad=metagrad, aggregation=Mean(), **options
    )


@pytest.mark.parametrize("method", AUTOCAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(method: str, dtype: torch.dtype) -> None:
    """Outputs have this dtype; parameters and gradients are float32, close to those in float32."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Softplus(), nn.Linear(32, WAYS))
    batch, seen = tasks(dtype=torch.float32), []
    module[1].register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    results = []
    for autocast in (None, dtype):
        seen.clear()
        learner = AUTOCAST[method](copy.deepcopy(module), autocast=autocast, check_precision=False)
        gradient, result = learner.meta_gradient(batch)
        results.append((gradient, result.query_loss))
        assert gradient.dtype == torch.float32
        expected = torch.float32 if autocast is None else dtype
        assert set(seen) == {expected}
        assert result.query_output.dtype == learner.predict(batch).dtype == expected
        fast = learner.adapt(batch.support_x[0], batch.support_y[0])
        assert {t.dtype for t in fast.values()} == {torch.float32}
        assert not torch.is_autocast_enabled("cpu")
    (plain, plain_loss), (found, found_loss) = results
    assert 0 < (found - plain).norm() < 0.05 * plain.norm()
    torch.testing.assert_close(found_loss.float(), plain_loss, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_autocast_of_images_learns(checkpoint: bool) -> None:
    batch, module = tasks(dtype=torch.float32), images()
    del module[4]  # dropout
    learner = FOMAML(module, loss, inner_lr=0.1, autocast=torch.bfloat16, checkpoint=checkpoint)
    losses = [learner.step(batch).query_loss.mean().item() for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert module[1].num_batches_tracked == 30 * 2


def test_autocast_with_checkpointing() -> None:
    module, batch, found = images(), tasks(dtype=torch.float32), []
    for checkpoint in (False, True):
        torch.manual_seed(1)
        learner = FOMAML(
            copy.deepcopy(module),
            loss,
            inner_lr=0.1,
            autocast=torch.bfloat16,
            checkpoint=checkpoint,
        )
        found.append(learner.meta_gradient(batch)[0])
    torch.testing.assert_close(*found)


def test_invalid_autocast() -> None:
    with pytest.raises(ValueError, match=r"must be torch.bfloat16 or torch.float16, got torch.fl"):
        FOMAML(images(), loss, inner_lr=0.1, autocast=torch.float32)
    with pytest.raises(ValueError, match=r"needs float32 parameters.*got torch.float64.*\.float"):
        FOMAML(images().double(), loss, inner_lr=0.1, autocast=torch.bfloat16)
