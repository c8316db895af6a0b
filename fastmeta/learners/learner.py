"""A meta-learner: inner adaptation x meta-gradient x task aggregation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta.adaptation import Adaptation
from fastmeta.aggregation import Aggregation
from fastmeta.functional import Buffers, FunctionalModule
from fastmeta.fusion import FusedModule
from fastmeta.metagrad import Episode, MetaGradient
from fastmeta.rows import RowBuffer
from fastmeta.tasks import Task, TaskBatch

Loss = Callable[[Tensor, Tensor], Tensor]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class StepResult:
    """What one meta-step saw; detached tensors on the device, so that reading costs no sync.

    Attributes:
        support_loss: ``(T,)``, before the first inner step.
        query_loss: ``(T,)``, after adaptation.
        query_output: ``(T, n_query, *output)``, after adaptation.
    """

    support_loss: Tensor
    query_loss: Tensor
    query_output: Tensor


class MetaLearner:
    """Trains the initialisation of an ordinary module; any combination of the three rooms runs.

    The module is used as it is: tied weights, frozen parameters, dropout and any BatchNorm are
    fine. Each task works on its own copy of the buffers; after a meta-step the module's buffers are
    the mean over the tasks' (see :meth:`fastmeta.functional.FunctionalModule.merge_buffers`).

    Args:
        module: the network; its trainable parameters are the initialisation that is learned.
        loss: from outputs and targets to a scalar, such as ``torch.nn.functional.cross_entropy``.
        adaptation: room 1, the inner loop.
        metagrad: room 2, the meta-gradient of a task.
        aggregation: room 3, the weights of the tasks.
        optimizer: makes the outer optimizer from the parameters; Adam with 1e-3 by default.
        fuse: run BatchNorm2d, ReLU and max-pooling that follow each other in an ``nn.Sequential``
            as one compiled op (see :class:`fastmeta.fusion.FusedModule`).
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        *,
        adaptation: Adaptation,
        metagrad: MetaGradient,
        aggregation: Aggregation,
        optimizer: OptimizerFactory | None = None,
        fuse: bool = True,
    ) -> None:
        self.module = module
        self.loss = loss
        self.adaptation = adaptation
        self.metagrad = metagrad
        self.aggregation = aggregation
        self._model = FusedModule(module) if fuse else FunctionalModule(module)
        params = self._model.params
        self.optimizer = (
            torch.optim.Adam(params, lr=1e-3) if optimizer is None else optimizer(params)
        )
        self._query_rows = RowBuffer(params)
        self._inner_rows = RowBuffer(params)

    def meta_gradient(self, batch: TaskBatch) -> tuple[Tensor, StepResult]:
        """The meta-gradient ``(P,)`` of a meta-batch, without changing the parameters.

        Running statistics in the module's buffers are updated, as by any forward pass in training.

        Raises:
            ValueError: if the meta-batch is empty.
        """
        _check_not_empty(batch)
        record = self.metagrad.records_inner or self.aggregation.records_inner
        self._query_rows.clear()
        self._inner_rows.clear()
        results, buffers = [], []
        for task in batch:
            own = self._model.clone_buffers()
            episode = self._episode(task, own)
            result = self.metagrad.task(episode, self._model.params, self.adaptation, record)
            self._query_rows.append(result.query)
            if result.inner is not None:
                self._inner_rows.append(result.inner)
            results.append((result.support_loss, result.query_loss, result.query_output))
            buffers.append(own)
        if self.module.training:
            self._model.merge_buffers(buffers)
        with torch.no_grad():
            rows = self.metagrad.rows(self._query_rows, self._inner_rows if record else None)
            flat = rows.combine(self.aggregation.weights(rows))
        return flat, StepResult(*(torch.stack(part) for part in zip(*results, strict=True)))

    def step(self, batch: TaskBatch) -> StepResult:
        """One meta-training step: meta-gradient into ``.grad``, then the outer optimizer's step.

        Raises:
            ValueError: if the meta-batch is empty.
        """
        flat, result = self.meta_gradient(batch)
        for param, grad in zip(
            self._model.params, self._query_rows.layout.views(flat), strict=True
        ):
            param.grad = grad
        self.optimizer.step()
        return result

    def adapt(self, x: Tensor, y: Tensor, steps: int | None = None) -> dict[str, Tensor]:
        """The fast weights of one task, by parameter name; use with ``torch.func.functional_call``.

        Args:
            x: support inputs, ``(n_support, *input)``.
            y: support targets.
            steps: inner steps; as in training by default.
        """
        fast = self._adapt(x, y, self._model.clone_buffers(), steps)
        return dict(zip(self._model.names, fast, strict=True))

    def predict(self, batch: TaskBatch, steps: int | None = None) -> Tensor:
        """Query outputs after adaptation to the support sets, ``(T, n_query, *output)``.

        Nothing of the learner changes. BatchNorm with batch statistics sees the whole query set at
        once ("transductive", as in MAML and Reptile).

        Args:
            batch: the tasks; query targets are not used.
            steps: inner steps; as in training by default.

        Raises:
            ValueError: if the meta-batch is empty.
        """
        _check_not_empty(batch)
        outputs = []
        for task in batch:
            buffers = self._model.clone_buffers()
            fast = self._adapt(task.support_x, task.support_y, buffers, steps)
            with torch.no_grad():
                outputs.append(self._model(fast, buffers, task.query_x))
        return torch.stack(outputs)

    def state_dict(self) -> dict[str, Any]:
        """State of the module, the outer optimizer and the meta-gradient."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "metagrad": self.metagrad.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.metagrad.load_state_dict(state["metagrad"])

    def _adapt(self, x: Tensor, y: Tensor, buffers: Buffers, steps: int | None) -> list[Tensor]:
        def support(params: Sequence[Tensor]) -> Tensor:
            return self.loss(self._model(params, buffers, x), y)

        with torch.enable_grad():
            fast = self.adaptation.adapt(support, self._model.params, steps=steps).fast
        return [t.detach() for t in fast]

    def _episode(self, task: Task, buffers: Buffers) -> Episode:
        def evaluate(x: Tensor, y: Tensor) -> Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]]:
            def run(params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
                output = self._model(params, buffers, x)
                return self.loss(output, y), output

            return run

        return Episode(
            support=evaluate(task.support_x, task.support_y),
            query=evaluate(task.query_x, task.query_y),
        )


def _check_not_empty(batch: TaskBatch) -> None:
    if len(batch) == 0:
        raise ValueError("the meta-batch has no tasks; expected at least one.")
