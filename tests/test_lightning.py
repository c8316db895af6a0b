"""Training with Lightning's Trainer equals a plain loop, also when resumed."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import CoLearner, MetaLearner, RaggedTaskBatch, Task, TaskBatch, model_loss
from fastmeta.data import SineTasks, TaskSource
from fastmeta.evaluation import ACCURACY, MSE, evaluate
from fastmeta.learners import build
from fastmeta.models import MLP

L = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from fastmeta.lightning import LightningLearner, TaskDataModule  # noqa: E402

SINES = SineTasks(tasks=3, shots=4, queries=5, seed=1)
HELD_OUT = SineTasks(tasks=2, shots=4, queries=5, seed=2)
EPOCH = 3


class Classes:
    """Classification tasks that shift from meta-batch to meta-batch."""

    ways = 3

    def __getitem__(self, index: int) -> TaskBatch:
        draw = torch.Generator().manual_seed(index)
        y = torch.arange(3).repeat(2, 4)
        x = torch.randn(2, 12, 5, generator=draw) + y[..., None]
        return TaskBatch(x[:, :6], y[:, :6], x[:, 6:], y[:, 6:])


def regression(method: str = "maml", **options: Any) -> MetaLearner:
    return build(method, MLP(1, 1, (6,)), F.mse_loss, inner_lr=0.05, **options)


def with_co_learner() -> MetaLearner:
    module = MLP(1, 1, (6,))
    head = CoLearner(MLP(6, 1, (4,)), "layers.2")
    return build("cml", module, F.mse_loss, inner_lr=0.05, co_learner=head)


LEARNERS: dict[str, Callable[[], MetaLearner]] = {
    "maml": regression,
    "meta-sgd": lambda: regression("meta-sgd"),
    "gsl": lambda: regression("gsl", metagrad_options={"variant": "R4"}),
    "cml": with_co_learner,
}


def data(train: TaskSource = SINES, held_out: TaskSource = HELD_OUT) -> TaskDataModule:
    sizes = {"train_batches": EPOCH, "val_batches": 2, "test_batches": 3}
    return TaskDataModule(train, held_out, held_out, **sizes)


def trainer(**options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", **{"enable_checkpointing": False, **quiet, **options})


def state(learner: MetaLearner) -> list[Tensor]:
    found: list[Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, Tensor):
            found.append(value.clone())
        elif isinstance(value, dict | list | tuple):
            for part in value.values() if isinstance(value, dict) else value:
                collect(part)

    collect(learner.state_dict())
    return found


def assert_same(one: MetaLearner, other: MetaLearner) -> None:
    for a, b in zip(state(one), state(other), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", LEARNERS)
def test_steps_match_a_plain_loop(name: str) -> None:
    plain = LEARNERS[name]()
    lit = LightningLearner(copy.deepcopy(plain))
    fit = trainer(max_epochs=2)
    fit.fit(lit, data())
    assert fit.global_step == 2 * EPOCH
    for i in range(2 * EPOCH):
        plain.step(SINES[i])
    assert_same(lit.learner, plain)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("stopped", [EPOCH, EPOCH + 1])
def test_resumes_exactly(name: str, stopped: int, tmp_path: Path) -> None:
    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)

    whole = LightningLearner(LEARNERS[name](), scheduler=schedule)
    begun, again = copy.deepcopy(whole), copy.deepcopy(whole)
    kept = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=stopped)
    trainer(max_epochs=3, enable_checkpointing=True, callbacks=[kept]).fit(whole, data())
    trainer(max_steps=stopped).fit(begun, data())
    with torch.no_grad():
        for param in again.parameters():
            param.add_(1)
    rest = trainer(max_epochs=3)
    rest.fit(again, data(), ckpt_path=tmp_path / f"step={stopped}.ckpt")
    assert rest.global_step == 3 * EPOCH
    assert_same(again.learner, whole.learner)
    assert whole.learner.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.8**9)

    loaded = LightningLearner.load_from_checkpoint(
        tmp_path / f"step={stopped}.ckpt", learner=LEARNERS[name]()
    )
    for a, b in zip(loaded.parameters(), begun.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_validation_and_test_scores(kind: str) -> None:
    if kind == "regression":
        learner, source, metric = regression("fomaml"), HELD_OUT, MSE
    else:
        module = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        learner, source, metric = (
            build("fomaml", module, F.cross_entropy, inner_lr=0.4),
            Classes(),
            ACCURACY,
        )
    lit = LightningLearner(learner, steps=4)
    fit = trainer(max_epochs=1)
    fit.fit(lit, data(SINES if kind == "regression" else source, source))
    logged = {name: value.item() for name, value in fit.callback_metrics.items()}
    assert set(logged) == {f"{s}_{n}" for s in ("train", "val") for n in ("loss", metric.name)}
    width = len(source[0])
    for split, batches in (("val", 2), ("test", 3)):
        if split == "test":
            (logged,) = fit.test(lit, data(source, source), verbose=False)
        expected = evaluate(
            learner, source, count=batches * width, metric=metric, steps=4
        ).scores.mean()
        assert logged[f"{split}_{metric.name}"] == pytest.approx(expected.item(), rel=1e-5)
    learner.module.eval()
    losses = [
        learner.loss(output, y).item()
        for i in range(3)
        for output, y in zip(learner.predict(source[i], 4), source[i].query_y, strict=True)
    ]
    assert logged["test_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_fast_dev_run_and_workers() -> None:
    lit = LightningLearner(regression())
    before = state(lit.learner)
    source = data()
    source.num_workers = 1
    trainer(fast_dev_run=True).fit(lit, source)
    assert not all(torch.equal(a, b) for a, b in zip(before, state(lit.learner), strict=False))


def test_a_custom_loader() -> None:
    tasks = SineTasks(tasks=2, shots=4, queries=5, length=4)
    lit = LightningLearner(regression())
    fit = trainer(max_epochs=1)
    fit.fit(lit, torch.utils.data.DataLoader(tasks, batch_size=None))
    assert fit.global_step == 4


def test_skipped_tasks_keep_the_log_finite() -> None:
    class NonFiniteTasks:
        ways = None

        def __getitem__(self, index: int) -> TaskBatch:
            batch = SINES[index]
            batch.query_y[0] = torch.nan
            return batch

    lit = LightningLearner(regression(non_finite="skip"))
    fit = trainer(max_steps=2)
    fit.fit(lit, data(NonFiniteTasks()))
    assert torch.isfinite(fit.callback_metrics["train_loss"])
    assert lit.learner.non_finite_guard.skipped == 2


def test_silent_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"precision=.32-true.*autocast=torch.bfloat16"):
        trainer(precision="bf16-mixed", max_steps=1).fit(LightningLearner(regression()), data())
    lit = LightningLearner(regression())
    lit.trainer = type("Several", (), {"world_size": 2})()
    with pytest.raises(ValueError, match="one process, got 2"):
        lit.setup("fit")


def test_a_missing_lightning_is_explained() -> None:
    code = "import sys; sys.modules['lightning'] = None; import fastmeta.lightning"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert 'pip install "fastmeta[lightning]"' in result.stderr


class Sequences(nn.Module):
    """Takes its inputs by name and computes its loss itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(ids)
        return {"loss": F.cross_entropy(logits.flatten(0, -2), labels.flatten()), "logits": logits}


class Mappings:
    """Inputs with labels in them, of tasks that differ in length."""

    ways = None

    def __getitem__(self, index: int) -> RaggedTaskBatch:
        draw = torch.Generator().manual_seed(index)

        def inputs(length: int) -> dict[str, Tensor]:
            ids, labels = torch.randint(7, (2, 2, length), generator=draw)
            return {"ids": ids, "labels": labels}

        return RaggedTaskBatch([Task(inputs(n), None, inputs(n), None) for n in (3, 4)])


def test_mappings_of_tasks_of_unequal_sizes() -> None:
    learner = build("maml", Sequences(), model_loss, inner_lr=0.05)
    model = LightningLearner(learner, steps=2)
    own = TaskDataModule(
        *(Mappings() for _ in range(3)), train_batches=2, val_batches=2, test_batches=1
    )
    fit = trainer(max_epochs=1)
    fit.fit(model, own)
    assert set(fit.callback_metrics) == {"train_loss", "val_loss"}
    before = copy.deepcopy(learner.module.state_dict())
    (metrics,) = fit.test(model, own, verbose=False)
    expected = learner.evaluate(Mappings()[0], 2).query_loss.mean()
    assert metrics["test_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert all(torch.equal(v, before[name]) for name, v in learner.module.state_dict().items())
