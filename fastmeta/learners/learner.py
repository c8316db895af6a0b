"""A meta-learner: inner adaptation x meta-gradient x task aggregation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor, nn

from fastmeta._checks import check_choice
from fastmeta.adaptation import Adaptation
from fastmeta.aggregation import Aggregation
from fastmeta.distributed import Sharding
from fastmeta.engines import (
    ENGINES,
    Compilation,
    EngineName,
    EngineSelector,
    Loss,
    StepResult,
    StepSpec,
)
from fastmeta.engines.base import Outputs
from fastmeta.functional import (
    Checkpoint,
    CoLearner,
    FunctionalModule,
    FusedModule,
    Head,
    Penalty,
    Predictor,
)
from fastmeta.gradients import TaskGradients
from fastmeta.learners._adapted_module import adapted_module
from fastmeta.learners._checks import check_components, check_head, check_tasks
from fastmeta.learners._components import replace_components
from fastmeta.learners._inference import adapt_to_task, evaluate_tasks, predict_tasks
from fastmeta.learners._meta_step import task_gradients
from fastmeta.learners._precision import FirstStepCheck
from fastmeta.learners._state import load_state, state_of
from fastmeta.learners._trainable import TrainableStep, learned_rates
from fastmeta.learners.nonfinite import NonFinite, NonFiniteGuard
from fastmeta.metagrad import MetaGradient
from fastmeta.tasks import Examples, MetaBatch, RaggedTaskBatch, Task, TaskBatch

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class MetaLearner:
    """Meta-trains the initialisation of an `nn.Module`, with any combination of components.

    The module is used unchanged: tied weights, frozen parameters, dropout and any BatchNorm are
    supported. Each task has its own copy of the buffers; after a meta-step those of the module are
    the mean over tasks. Parameters that are frozen later (`requires_grad_(False)`) are not adapted
    and have no meta-gradient from the next call on, until they are unfrozen.

    Args:
        module: the network; its trainable parameters are the initialisation that is learned.
        loss: a scalar function of the module's output, as the module returns it, and the targets,
            such as `F.cross_entropy`; [`fastmeta.model_loss`][] if the module computes the loss.
        adaptation: the inner loop.
        metagrad: the meta-gradient of a task.
        aggregation: the weights of the tasks.
        optimizer: makes the outer optimizer from the parameters; Adam with 1e-3 by default.
        engine: what runs the tasks in training. `"loop"`: autograd, one task after another;
            supports everything. `"mlp"`: one compiled call for plain multi-layer perceptrons (see
            [`fastmeta.engines.MlpEngine`][]). `"sequence"`: one compiled call for convolutional
            networks, on CUDA one CUDA graph (see [`fastmeta.engines.SequenceEngine`][]).
            `"batched"`: all tasks in one call of the module under `torch.vmap`, for networks so
            small that Python overhead dominates (see [`fastmeta.engines.BatchedEngine`][]).
            `"compiled"`: the meta-gradient traced and compiled by Inductor, whose first meta-step
            takes seconds to minutes (see [`fastmeta.engines.CompiledEngine`][]). `"auto"`: the MLP
            engine where it is suitable, else on the CPU the sequence engine where it is, else the
            loop.
        fuse: run 3x3 convolutions, and BatchNorm2d with the ReLU and max-pooling that follow it, in
            an `nn.Sequential` as compiled ops, and attention where second derivatives are taken
            (see [`fastmeta.functional.FusedModule`][]).
        autocast: `torch.bfloat16`, or `torch.float16`, in which small gradients underflow
            because losses are not scaled: forward passes and the loss run under `torch.autocast`,
            all else in float32. Disables the compiled ops of `fuse`, except attention.
        checkpoint: activation checkpointing of the children of every `nn.Sequential` and
            `nn.ModuleList`; for first-order and exact meta-gradients. `"second-order"`: only where
            second derivatives are taken, which need the most memory.
        co_learner: a second head that is trained with the module and augments its meta-gradients
            (CML), see [`fastmeta.CoLearner`][]; the module is not changed.
        penalty: a scalar function of the adapted parameters of the module by name, such as
            [`fastmeta.models.KLPenalty`][], that is added to the support loss of every inner step
            and to the query loss, reported losses included.
        non_finite: what to do with tasks whose loss or gradient is NaN or infinite. `"keep"`:
            nothing; `"skip"`: leave them out; `"raise"`: leave them out, and raise (see
            [`fastmeta.learners.NonFiniteGuard`][]).
        sharding: of the tasks of a meta-batch over the ranks of a process group: the learner of
            each rank is given the rank's own tasks and takes the meta-step of all tasks. All ranks
            must start with the same parameters and optimizer.
        check_precision: compare the first meta-gradient in bfloat16 or float16 with float32 if it
            takes second derivatives, at the cost of one more meta-gradient, and warn if the
            cosine is below 0.95 (see [`fastmeta.learners.compare_precision`][]).

    Attributes:
        steps_taken: number of meta-gradients so far.
        non_finite_guard: counts skipped tasks.

    Raises:
        ValueError: if `engine` or `non_finite` is unknown, the module has no trainable
            parameters, or it does not support `autocast`, `checkpoint` or the co-learner.
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
        checkpoint: Checkpoint = False,
        co_learner: CoLearner | None = None,
        penalty: Penalty | None = None,
        non_finite: NonFinite = "keep",
        sharding: Sharding | None = None,
        check_precision: bool = True,
    ) -> None:
        check_choice("engine", engine, ENGINES)
        metagrad = check_components(metagrad, checkpoint, co_learner)
        self.non_finite_guard = NonFiniteGuard(non_finite, sharding)
        self.sharding = sharding
        self.check_precision = check_precision
        self.module = module
        self.co_learner = co_learner
        kind = FusedModule if fuse else FunctionalModule
        model = kind(module, autocast, checkpoint, co_learner, penalty)
        adaptation.bind(model.params, model.names)
        self._learned = [*model.params, *learned_rates(adaptation)]
        optimized = [p for p in self._learned if not any(p is own for own in adaptation.own_rates)]
        self.optimizer = (
            torch.optim.Adam(optimized, lr=1e-3) if optimizer is None else optimizer(optimized)
        )
        self.steps_taken = 0
        self._state: dict[str, Tensor] = {}  # of the meta-gradient
        self._aggregation_state: dict[str, Tensor] = {}
        self._built = StepSpec(model, loss, adaptation, metagrad, aggregation)
        self._step = TrainableStep.of(self._built, engine)

    def _current(self) -> TrainableStep:
        """What is run, for the parameters that are trainable now."""
        self._step = self._step.current(self._built)
        return self._step

    @property
    def engine(self) -> EngineName:
        """What runs the tasks in training."""
        return self._step.engines.name

    @engine.setter
    def engine(self, name: EngineName) -> None:
        self._step = replace(self._step, engines=EngineSelector(name, self._step.spec))

    @property
    def compilations(self) -> Sequence[Compilation]:
        """What engine `"compiled"` has compiled for the parameters trainable now, and why."""
        return self._step.engines.compilations

    @property
    def loss(self) -> Loss:
        """A scalar function of the module's output and the targets."""
        return self._built.loss

    @property
    def penalty(self) -> Penalty | None:
        """What is added to the support and query losses."""
        return self._built.model.penalty

    @property
    def adaptation(self) -> Adaptation:
        """The inner loop."""
        return self._built.adaptation

    @property
    def metagrad(self) -> MetaGradient:
        """The meta-gradient of a task."""
        return self._built.metagrad

    @property
    def aggregation(self) -> Aggregation:
        """The task weights."""
        return self._built.aggregation

    def meta_gradient(self, batch: MetaBatch) -> tuple[Tensor, StepResult]:
        """The meta-gradient `(P,)` of a meta-batch, without changing the parameters.

        It is with respect to the trainable parameters of the module and the co-learner, and the
        learned rates of the adaptation. Running statistics in the module's buffers are updated, as
        by any forward pass in training.

        Raises:
            ValueError: if the meta-batch is empty, or the engine asked for cannot run it.
        """
        precision = FirstStepCheck.of(self)
        found, result = self._task_gradients(batch)
        with torch.no_grad():
            flat = found.combine(self.aggregation.weights(found))
            self.non_finite_guard.check_combined(flat, self.steps_taken)
        if precision is not None:
            precision.compare(batch, flat)
        return flat, result

    def check(self, batch: MetaBatch) -> None:
        """Checks that meta-batches like this one can be run, without running it.

        Raises:
            ValueError: if it is empty, or the engine asked for cannot run it.
        """
        check_tasks(batch, self.sharding)
        self._current().engines.select(batch)

    def _task_gradients(self, batch: MetaBatch) -> tuple[TaskGradients, StepResult]:
        """The meta-gradients of the tasks, in memory that the next call reuses."""
        check_tasks(batch, self.sharding)
        return task_gradients(self, batch)

    def step(self, batch: MetaBatch) -> StepResult:
        """One meta-training step: `backward`, then the steps of outer optimizer and own rates."""
        result = self.backward(batch)
        self.optimizer.step()
        self.adaptation.step_rates()
        return result

    def backward(self, batch: MetaBatch) -> StepResult:
        """Sets `.grad` to the meta-gradient, to `None` for frozen parameters; does not accumulate.

        After the step of an outer optimizer of your own, call `learner.adaptation.step_rates()`,
        which changes rates with a rule of their own, such as those of Robust MAML.

        Raises:
            ValueError: if the meta-batch is empty, or the engine asked for cannot run it.
        """
        flat, result = self.meta_gradient(batch)
        for param in self._learned:
            param.grad = None
        grads = self._step.buffers.outer.layout.views(flat)
        for param, grad in zip(self._step.learned, grads, strict=True):
            param.grad = grad
        return result

    def adapt(self, x: Examples, y: Examples, steps: int | None = None) -> dict[str, Tensor]:
        """The fast weights for one task by parameter name, for `torch.func.functional_call`.

        Args:
            x: support inputs, `(n_support, *input)`, or a mapping of names to such tensors.
            y: support targets.
            steps: number of inner steps; as in training by default.

        Raises:
            TypeError: if the adaptation is one in function space, which has no fast weights.
        """
        spec = self._current().spec
        fast, own = adapt_to_task(spec, x, y, spec.model.clone_buffers(), steps), spec.model.own
        if isinstance(fast, Predictor):
            raise TypeError(
                f"adaptation.{type(self.adaptation).__name__} adapts in function space: its result "
                "is no fast weights. Use adapted_module(x, y), or predict."
            )
        return dict(zip(spec.model.names[:own], fast[:own], strict=True))

    def adapted_module(self, x: Examples, y: Examples, steps: int | None = None) -> nn.Module:
        """The network adapted to one task, as a module of its own.

        A copy of the module with fast weights and the buffers after adaptation; or, of an
        adaptation in function space, a module around a copy, with the outputs of `predict`.

        Args:
            x: support inputs, `(n_support, *input)`, or a mapping of names to such tensors.
            y: support targets.
            steps: number of inner steps; as in training by default.
        """
        return adapted_module(self._current().spec, x, y, steps)

    @overload
    def predict(
        self, batch: TaskBatch[Any, Any], steps: int | None = None, head: Head = "main"
    ) -> Tensor: ...

    @overload
    def predict(
        self, batch: Task[Any, Any], steps: int | None = None, head: Head = "main"
    ) -> Tensor: ...

    @overload
    def predict(
        self, batch: RaggedTaskBatch, steps: int | None = None, head: Head = "main"
    ) -> list[Tensor]: ...

    def predict(
        self, batch: MetaBatch | Task[Any, Any], steps: int | None = None, head: Head = "main"
    ) -> Outputs:
        """Query outputs after adaptation, `(T, n_query, *output)`.

        Those of [`StepResult.query_output`][fastmeta.learners.StepResult]: a list for tasks of
        unequal sizes, the `logits` of modules that do not return a tensor.

        Of a single `Task` they are `(n_query, *output)`, which the loss takes.

        The learner does not change. BatchNorm with batch statistics sees the whole query set at
        once ("transductive", as in MAML and Reptile).

        Args:
            batch: the tasks, or one; query targets are not used.
            steps: number of inner steps; as in training by default.
            head: `"main"`: the module's outputs, without the co-learner (CML).
                `"co-learner"`: its outputs on the features of the adapted module, as in the
                authors' code for CML-dagger. `"co-learner-alone"`: the same, but the features
                are adapted to the co-learner's support loss, as in equation 9 of the paper. The
                co-learner itself is never adapted.

        Raises:
            ValueError: if the meta-batch is empty, the head is unknown or there is no co-learner.
        """
        if isinstance(batch, Task):
            return self.predict(RaggedTaskBatch([batch]), steps, head)[0]
        check_tasks(batch)
        check_head(head, self.co_learner)
        return predict_tasks(self._current().spec, batch, steps, head)

    def evaluate(self, batch: MetaBatch, steps: int | None = None) -> StepResult:
        """Losses and query outputs of a meta-batch after adaptation; the learner does not change.

        Scores of many tasks, with their mean and interval, are [`fastmeta.evaluate`][], which also
        sets the module to evaluation mode; this does not.

        Args:
            batch: the tasks.
            steps: number of inner steps; as in training by default.

        Raises:
            ValueError: if the meta-batch is empty.
        """
        check_tasks(batch)
        return evaluate_tasks(self._current().spec, batch, steps)

    def with_components(
        self,
        *,
        adaptation: Adaptation | None = None,
        metagrad: MetaGradient | None = None,
        aggregation: Aggregation | None = None,
        loss: Loss | None = None,
    ) -> MetaLearner:
        """This learner with other components; the module and everything else is shared.

        For `adapt`, `predict` and `meta_gradient`; the optimizer does not have
        the learned rates of a new adaptation.

        Raises:
            ValueError: if the adaptation does not support the module.
        """
        given = {
            "adaptation": adaptation,
            "metagrad": metagrad,
            "aggregation": aggregation,
            "loss": loss,
        }
        return replace_components(self, {k: v for k, v in given.items() if v is not None})

    def state_dict(self) -> dict[str, Any]:
        """State of module, co-learner, learned rates, optimizer, components and skip counts."""
        return state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`; nothing changes if the state does not fit.

        Raises:
            KeyError, RuntimeError, ValueError: if it is of another network, method or optimizer.
        """
        load_state(self, state)
