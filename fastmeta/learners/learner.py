"""A meta-learner: inner adaptation x meta-gradient x task aggregation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from fastmeta.adaptation import Adaptation, run_inner_loop
from fastmeta.aggregation import Aggregation
from fastmeta.distributed import ShardedTaskGradients, Sharding
from fastmeta.engines import Chunks, EngineName, Loss, Method, Rows, StepResult, check_name, choose
from fastmeta.functional import Buffers, CoLearner, FunctionalModule, Head
from fastmeta.functional._fusion import FusedModule
from fastmeta.gradients import TaskGradients
from fastmeta.learners.nonfinite import NonFinite, NonFiniteGuard
from fastmeta.metagrad import MetaGradient, Reptile
from fastmeta.tasks import TaskBatch

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


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
        engine: what runs the tasks in training: ``"loop"``, by autograd, takes anything;
            ``"mlp"``, one compiled call, takes plain multi-layer perceptrons (see
            :class:`fastmeta.engines.MlpEngine`) and says what is in its way; ``"batched"`` runs all
            tasks in one call of the module under ``torch.vmap``, which pays where a network is so
            small that calls cost more than products (see
            :class:`fastmeta.engines.BatchedEngine`); ``"auto"`` takes the MLP step where it can
            run, else the loop.
        fuse: run 3x3 convolutions, and BatchNorm2d with the ReLU and max-pooling that follow it, in
            an ``nn.Sequential`` as compiled ops (see :class:`fastmeta.functional.FusedModule`).
        autocast: ``torch.bfloat16`` (or ``torch.float16``, whose small gradients vanish, because
            losses are not scaled): forward passes and the loss run under ``torch.autocast`` with
            this dtype. Parameters, inner steps, meta-gradients and the outer optimizer stay
            float32. The compiled ops of ``fuse`` are not used then.
        checkpoint: in backward passes, compute the activations within the parts of an
            ``nn.Sequential`` or ``nn.ModuleList`` again instead of keeping them; for first-order
            meta-gradients.
        co_learner: another head that trains with the module and augments its meta-gradients (CML),
            see :class:`fastmeta.CoLearner`; the module is not changed.
        non_finite: what becomes of a task whose loss or gradient is NaN or infinite: ``"keep"``
            lets it spoil the meta-gradient, ``"skip"`` learns from the others, ``"raise"`` raises
            besides (see :class:`fastmeta.learners.NonFiniteGuard`).
        sharding: how the tasks of a meta-batch are shared out over the ranks of a process group:
            each rank's learner is given its own tasks, and takes the meta-step of all of them. All
            ranks begin with the same parameters and optimizer.

    Attributes:
        non_finite_guard: counts the tasks that were skipped.

    Raises:
        ValueError: if ``engine`` or ``non_finite`` is unknown, the module has nothing to train, or
            it does not suit ``autocast``, ``checkpoint`` or the co-learner.
        TypeError: if the module is wrapped for data parallelism, or a parameter or buffer is a
            DTensor or on the meta device.
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
        engine: EngineName = "auto",
        fuse: bool = True,
        autocast: torch.dtype | None = None,
        checkpoint: bool = False,
        co_learner: CoLearner | None = None,
        non_finite: NonFinite = "keep",
        sharding: Sharding | None = None,
    ) -> None:
        check_name(engine)
        self.sharding = metagrad.sharding = sharding
        self.engine = engine
        self.module = module
        self.loss = loss
        self.adaptation = adaptation
        self.metagrad = metagrad
        self.aggregation = aggregation
        if checkpoint and metagrad.second_order:
            raise ValueError(
                f"checkpoint=True saves no memory with metagrad.{type(metagrad).__name__}, whose "
                "second derivatives keep what was computed again; expected a first-order "
                "meta-gradient such as FirstOrder, GSL or Reptile. metagrad.Recursion needs the "
                "least memory of the exact ones."
            )
        if co_learner is not None and isinstance(metagrad, Reptile):
            raise ValueError(
                "a co-learner learns from a query loss that the inner loop does not train on, and "
                "metagrad.Reptile has none; expected another meta-gradient, such as FirstOrder."
            )
        self.co_learner = co_learner
        kind = FusedModule if fuse else FunctionalModule
        self._model = kind(module, autocast, checkpoint, co_learner)
        adaptation.bind(self._model.params, self._model.names)
        self._learned = [*self._model.params, *adaptation.rates]
        self.optimizer = (
            torch.optim.Adam(self._learned, lr=1e-3)
            if optimizer is None
            else optimizer(self._learned)
        )
        self.non_finite_guard = NonFiniteGuard(non_finite, sharding)
        self._rows = Rows.of(self._learned)
        self._chunks = Chunks()

    def meta_gradient(self, batch: TaskBatch) -> tuple[Tensor, StepResult]:
        """The meta-gradient ``(P,)`` of a meta-batch, without changing the parameters.

        In the trainable parameters of the module, of the co-learner, if there is one, and in the
        adaptation's learned rates, if there are any.
        Running statistics in the module's buffers are updated, as by any forward pass in training.

        Raises:
            ValueError: if the meta-batch is empty, or the engine asked for cannot run it.
        """
        found, result = self._task_rows(batch)
        with torch.no_grad():
            flat = found.combine(self.aggregation.weights(found))
            self.non_finite_guard.check_combined(flat)
        return flat, result

    def check(self, batch: TaskBatch) -> None:
        """Makes sure that meta-batches like this can be run, without running it.

        Raises:
            ValueError: if it is empty, or the engine asked for cannot run it.
        """
        self._check_tasks(batch)
        choose(self.engine, self._method(), batch)

    def _task_rows(self, batch: TaskBatch) -> tuple[TaskGradients, StepResult]:
        """The meta-gradients of the tasks, in memory that the next call uses again."""
        self._check_tasks(batch)
        method, rows = self._method(), self._rows
        rows.clear()
        result = choose(self.engine, method, batch).run(rows)
        with torch.no_grad():
            self.non_finite_guard.mask_tasks(rows, result)
            if self.module.training and rows.buffers:
                self._model.merge_buffers(rows.buffers, self.non_finite_guard.finite)
            found = self.metagrad.rows(rows.query, rows.inner if method.records_inner else None)
        if self.sharding is None:
            return found, result
        if self.module.training:
            self.sharding.merge_buffers([buffer for _, buffer in self._model.named_buffers()])
        return ShardedTaskGradients(found, self.sharding), result

    def _check_tasks(self, batch: TaskBatch) -> None:
        _check_not_empty(batch)
        if self.sharding is not None:
            self.sharding.check_own(batch)

    def _method(self) -> Method:
        rooms = self.adaptation, self.metagrad, self.aggregation
        return Method(self._model, self.loss, *rooms, self._chunks)

    def step(self, batch: TaskBatch) -> StepResult:
        """One meta-training step: :meth:`backward`, then the outer optimizer's step."""
        result = self.backward(batch)
        self.optimizer.step()
        return result

    def backward(self, batch: TaskBatch) -> StepResult:
        """The meta-gradient into ``.grad``, in place of what is there.

        Raises:
            ValueError: if the meta-batch is empty, or the engine asked for cannot run it.
        """
        flat, result = self.meta_gradient(batch)
        for param, grad in zip(self._learned, self._rows.query.layout.views(flat), strict=True):
            param.grad = grad
        return result

    def adapt(self, x: Tensor, y: Tensor, steps: int | None = None) -> dict[str, Tensor]:
        """The fast weights of the module for one task, by parameter name.

        Use them with ``torch.func.functional_call``.

        Args:
            x: support inputs, ``(n_support, *input)``.
            y: support targets.
            steps: inner steps; as in training by default.
        """
        fast = self._adapt(x, y, self._model.clone_buffers(), steps)
        own = self._model.own
        return dict(zip(self._model.names[:own], fast[:own], strict=True))

    def predict(self, batch: TaskBatch, steps: int | None = None, head: Head = "main") -> Tensor:
        """Query outputs after adaptation to the support sets, ``(T, n_query, *output)``.

        Nothing of the learner changes. BatchNorm with batch statistics sees the whole query set at
        once ("transductive", as in MAML and Reptile).

        Args:
            batch: the tasks; query targets are not used.
            steps: inner steps; as in training by default.
            head: ``"main"``: the module's outputs, without the co-learner (CML).
                ``"co-learner"``: its outputs on the features of the adapted module, as in the
                authors' code for CML-dagger. ``"co-learner-alone"``: the same, but the features
                adapt to the co-learner's own support loss, as in equation 9 of the paper. The
                co-learner itself never adapts.

        Raises:
            ValueError: if the meta-batch is empty, the head is unknown or there is no co-learner.
        """
        _check_not_empty(batch)
        if head not in get_args(Head):
            raise ValueError(f"head must be one of {', '.join(get_args(Head))}; got {head!r}.")
        if head != "main" and self.co_learner is None:
            raise ValueError(f"head={head!r} needs a learner with a co_learner; expected 'main'.")
        outputs = []
        for task in batch:
            buffers = self._model.clone_buffers()
            fast = self._adapt(task.support_x, task.support_y, buffers, steps, head)
            with torch.no_grad():
                if head == "main":
                    outputs.append(self._model(fast, buffers, task.query_x))
                else:
                    outputs.append(self._model.both(fast, buffers, task.query_x)[1])
        return torch.stack(outputs)

    def with_adaptation(self, adaptation: Adaptation) -> MetaLearner:
        """This learner with another inner loop for :meth:`adapt` and :meth:`predict`.

        It is the same in all else, and shares it: the module, to begin with.

        Raises:
            ValueError: if the adaptation does not suit the module.
        """
        adaptation.bind(self._model.params, self._model.names)
        other = copy.copy(self)
        other.adaptation = adaptation
        return other

    def state_dict(self) -> dict[str, Any]:
        """State of module, co-learner, learned rates, optimizer, meta-gradient and skip counts."""
        co_learner = self.co_learner
        return {
            "module": self.module.state_dict(),
            **({} if co_learner is None else {"co_learner": co_learner.head.state_dict()}),
            "rates": [rate.detach() for rate in self.adaptation.rates],
            "optimizer": self.optimizer.state_dict(),
            "metagrad": self.metagrad.state_dict(),
            "non_finite_guard": self.non_finite_guard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        if self.co_learner is not None:
            self.co_learner.head.load_state_dict(state["co_learner"])
        self.module.load_state_dict(state["module"])
        with torch.no_grad():
            for rate, saved in zip(self.adaptation.rates, state["rates"], strict=True):
                rate.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.metagrad.load_state_dict(state["metagrad"])
        if "non_finite_guard" in state:  # states of 0.1 have none
            self.non_finite_guard.load_state_dict(state["non_finite_guard"])

    def _adapt(
        self, x: Tensor, y: Tensor, buffers: Buffers, steps: int | None, head: Head = "main"
    ) -> list[Tensor]:
        def support(params: Sequence[Tensor]) -> Tensor:
            if head == "co-learner-alone":
                return self._model.evaluate_co_learner(self.loss, params, buffers, x, y)
            return self._model.evaluate(self.loss, params, buffers, x, y)[0]

        with torch.enable_grad():
            fast = run_inner_loop(self.adaptation, support, self._model.params, steps=steps).fast
        return [t.detach() for t in fast]


def _check_not_empty(batch: TaskBatch) -> None:
    if len(batch) == 0:
        raise ValueError("the meta-batch has no tasks; expected at least one.")
