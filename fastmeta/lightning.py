"""PyTorch Lightning integration; needs the extra `fastmeta[lightning]`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Sampler
from typing_extensions import override

from fastmeta.data import TaskSource
from fastmeta.evaluation import ACCURACY, MSE
from fastmeta.learners import MetaLearner, StepResult
from fastmeta.tasks import MetaBatch, TaskBatch
from fastmeta.train.errors import require

require("lightning", "fastmeta.lightning", extra="lightning")

from lightning.pytorch import LightningDataModule, LightningModule  # noqa: E402
from lightning.pytorch.core.optimizer import LightningOptimizer  # noqa: E402


class LightningLearner(LightningModule):
    """`LightningModule` of any learner, with manual optimization: a batch is a meta-batch.

    Logs `train_loss`, `val_loss` and `test_loss`, the query losses after adaptation, and
    `train_accuracy` and so on, or `train_mse` for floating-point targets (no scores of
    targets that are not tensors). Lightning's checkpoints contain the full state of the learner.

    Args:
        learner: the learner to train. Lightning steps its optimizer; its `autocast` sets the
            precision, not the `Trainer`.
        steps: inner steps in validation and test; as in training by default.
        scheduler: factory of the outer learning rate schedule, stepped once per meta-step.

    Raises:
        MissingPackageError: on import, if Lightning is not installed.
        ValueError: if the `Trainer` has several processes or another precision than
            `"32-true"`.
    """

    def __init__(
        self,
        learner: MetaLearner,
        steps: int | None = None,
        scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.learner = learner
        self.steps = steps
        self.scheduler = scheduler
        # Registered so that Lightning moves and checkpoints them.
        self.module = learner.module
        self.co_learner = None if learner.co_learner is None else learner.co_learner.head
        self.rates = nn.ParameterList(learner.adaptation.rates)

    def setup(self, stage: str) -> None:
        """Rejects `Trainer` settings that would silently change the training."""
        if self.trainer.world_size > 1:
            raise ValueError(
                f"expected a Trainer with one process, got {self.trainer.world_size}: their "
                "meta-gradients would not be reduced. See fastmeta.distributed.Sharding, or "
                "torchrun and fastmeta train."
            )
        if self.trainer.precision != "32-true":
            raise ValueError(
                f'expected Trainer(precision="32-true"), got {self.trainer.precision!r}. Give the '
                "learner autocast=torch.bfloat16, or convert its module before building it."
            )

    def configure_optimizers(self) -> Any:
        """The learner's optimizer and learning rate schedule."""
        optimizer = self.learner.optimizer
        return optimizer if self.scheduler is None else ([optimizer], [self.scheduler(optimizer)])

    def transfer_batch_to_device(
        self, batch: MetaBatch, device: torch.device, dataloader_idx: int
    ) -> MetaBatch:
        """The meta-batch on `device`."""
        return batch.to(device)

    def training_step(self, batch: MetaBatch, batch_idx: int) -> None:
        """Takes a meta-step."""
        result = self.learner.backward(batch)
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.step()  # counted by Lightning as its global step
        self.learner.adaptation.step_rates()
        if isinstance(scheduler, LRScheduler):
            scheduler.step()
        self._log_metrics("train", batch, result)

    def on_train_epoch_end(self) -> None:
        """Raises the pending error of a learner with `non_finite="raise"` on a GPU."""
        self.learner.non_finite_guard.check()

    def validation_step(self, batch: MetaBatch, batch_idx: int) -> None:
        """Adapts to each task and logs the validation metrics."""
        self._evaluate("val", batch)

    def test_step(self, batch: MetaBatch, batch_idx: int) -> None:
        """Adapts to each task and logs the test metrics."""
        self._evaluate("test", batch)

    def _evaluate(self, split: str, batch: MetaBatch) -> None:
        # Lightning evaluates in inference mode, whose tensors autograd does not accept.
        with torch.inference_mode(False), torch.no_grad():
            result = self.learner.evaluate(batch.map(torch.clone), self.steps)
        self._log_metrics(split, batch, result)

    def _log_metrics(self, split: str, batch: MetaBatch, result: StepResult) -> None:
        found = {"loss": result.query_loss}
        targets = batch[0].query_y
        if isinstance(targets, Tensor):
            metric = MSE if targets.is_floating_point() else ACCURACY
            found[metric.name] = metric.scores(result.query_output, batch.query_y)
        for name, values in found.items():
            self.log(f"{split}_{name}", values.nanmean(), prog_bar=True, batch_size=len(batch))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the learner state that Lightning does not save."""
        state = self.learner.state_dict()
        checkpoint["learner"] = {name: state[name] for name in ("metagrad", "non_finite_guard")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the learner state that Lightning does not load."""
        self.learner.load_state_dict({**self.learner.state_dict(), **checkpoint["learner"]})


class TaskDataModule(LightningDataModule):
    """`LightningDataModule` of meta-batches: meta-step `i` trains on `train[i]`.

    Epochs hence differ, and a resumed run continues exactly as an uninterrupted one.

    Args:
        train: training tasks.
        val: validation tasks.
        test: test tasks.
        train_batches: meta-batches per epoch.
        val_batches: meta-batches per validation: the first ones, always the same.
        test_batches: meta-batches of the test.
        num_workers: worker processes that draw tasks, see `torch.utils.data.DataLoader`.
    """

    def __init__(
        self,
        train: TaskSource,
        val: TaskSource,
        test: TaskSource,
        *,
        train_batches: int,
        val_batches: int,
        test_batches: int,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.sources = {"train": train, "val": val, "test": test}
        self.sizes = {"train": train_batches, "val": val_batches, "test": test_batches}
        self.num_workers = num_workers

    @override
    def train_dataloader(self) -> DataLoader[TaskBatch]:
        return self._loader(
            "train", lambda: 0 if self.trainer is None else self.trainer.global_step
        )

    @override
    def val_dataloader(self) -> DataLoader[TaskBatch]:
        return self._loader("val", lambda: 0)

    @override
    def test_dataloader(self) -> DataLoader[TaskBatch]:
        return self._loader("test", lambda: 0)

    def _loader(self, split: str, first: Callable[[], int]) -> DataLoader[TaskBatch]:
        return DataLoader(
            self.sources[split],  # type: ignore[arg-type]  # only indexing is needed
            batch_size=None,
            sampler=_IndexRange(first, self.sizes[split]),
            num_workers=self.num_workers,
        )


class _IndexRange(Sampler[int]):
    """`size` consecutive indices; `first` returns the first one when iteration starts."""

    def __init__(self, first: Callable[[], int], size: int) -> None:
        self.first, self.size = first, size

    def __iter__(self) -> Iterator[int]:
        first = self.first()
        return iter(range(first, first + self.size))

    def __len__(self) -> int:
        return self.size
