"""`fastmeta.evaluate`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import fastmeta
from fastmeta.evaluation import ACCURACY, MSE, Metric
from tests.helpers.problems import tasks


@pytest.fixture
def learner() -> fastmeta.MetaLearner:
    return fastmeta.MAML(fastmeta.models.MLP(1, 1, (8,)), F.mse_loss, inner_lr=0.01)


def sines(length: int | None = None) -> fastmeta.data.SineTasks:
    return fastmeta.data.SineTasks(tasks=4, shots=5, queries=5, length=length)


def test_scores_are_those_of_each_task(learner: fastmeta.MetaLearner) -> None:
    found = fastmeta.evaluate(learner, sines(), count=6, steps=2)
    for i, task in enumerate([*sines()[0], *sines()[1]][:6]):
        output = learner.predict(task, steps=2)
        assert output.shape == task.query_y.shape
        assert torch.allclose(found.scores[i], F.mse_loss(output, task.query_y), rtol=1e-5)
    values = found.scores.double()
    assert found.mean == pytest.approx(values.mean().item())
    assert found.ci95 == pytest.approx(1.96 * values.std().item() / 6**0.5)
    assert found.metric is MSE
    assert (
        repr(found) == f"Evaluation(mse {MSE.show(found.mean, found.ci95)}, 6 tasks, 2 inner steps)"
    )


def test_all_forms_of_tasks(learner: fastmeta.MetaLearner) -> None:
    expected = fastmeta.evaluate(learner, sines(), count=8).scores
    source = sines(length=2)
    for form in (source, [source[0], source[1]], iter(source), DataLoader(source, batch_size=None)):
        assert torch.equal(fastmeta.evaluate(learner, form).scores, expected)
    assert torch.equal(fastmeta.evaluate(learner, source[0]).scores, expected[:4])
    batched = fastmeta.data.SineTasks(tasks=300, shots=2, queries=2)
    assert len(fastmeta.evaluate(learner, batched, steps=0).scores) == 600


def test_accuracy_of_classification() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Dropout(0.5)).double()
    learner = fastmeta.FOMAML(module, F.cross_entropy, inner_lr=0.1)
    batch = tasks(3)
    found = fastmeta.evaluate(learner, batch)
    assert found.metric is ACCURACY
    assert module.training  # again
    learner.module.eval()
    right = [learner.predict(task).argmax(-1) == task.query_y for task in batch]
    assert torch.equal(found.scores, torch.stack(right).float().mean(1))
    assert F.cross_entropy(learner.predict(batch[0]), batch[0].query_y).dim() == 0


def test_a_metric_and_progress_of_ones_own(learner: fastmeta.MetaLearner) -> None:
    error = Metric("mae", lambda outputs, y: (outputs - y).abs().flatten(1).mean(1), False)
    seen = []
    found = fastmeta.evaluate(
        learner, sines(), count=6, metric=error, advance=lambda *numbers: seen.append(numbers)
    )
    assert repr(found).startswith("Evaluation(mae ")
    assert seen == [(4, 6), (6, 6)]


def test_too_few_tasks(learner: fastmeta.MetaLearner) -> None:
    with pytest.raises(ValueError, match="expected at least 9 tasks; got 8"):
        fastmeta.evaluate(learner, sines(length=2), count=9)
    with pytest.raises(ValueError, match="at least 2 tasks; got 1"):
        fastmeta.evaluate(learner, sines()[0].part(0, 1))
    with pytest.raises(ValueError, match="count must be"):
        fastmeta.evaluate(learner, sines(), count=1)
