"""Meta-gradient corrections and task aggregations as a drop-in for an outer optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.aggregation import Aggregation, Mean
from fastmeta.gradients import FlatLayout
from fastmeta.gradients.checks import check_materialized
from fastmeta.metagrad import GSL, FirstOrder, MetaGradient, Reptile
from fastmeta.optim._checks import check_loss_scale, check_of_gradients, check_real, warn_unmarked
from fastmeta.optim._combination import Combination
from fastmeta.optim._layers import layer_masks
from fastmeta.optim._support_graphs import SupportGraphs
from fastmeta.optim.recorder import Grads, TaskRecorder, add

Loss = TypeVar("Loss")


class TaskOptimizer(torch.optim.Optimizer):
    """Any torch optimizer, applied to a combination of task gradients in a user's own loop.

    Build it in place of the outer optimizer of a MAML loop and mark each task:

        opt = fastmeta.TaskOptimizer(
            model.parameters(), base=torch.optim.Adam, aggregation=GradientAgreement(), lr=1e-3
        )
        for tasks in loader:
            opt.zero_grad()
            for task in tasks:
                with opt.task(scale=1 / len(tasks)) as t:
                    ...  # inner loop, whose gradients are t.inner_gradients(support_loss, fast)
                    (query_loss / len(tasks)).backward()
            opt.step()

    `metagrad` corrects each task's gradient in `.grad`, and `aggregation` decides the weights of
    their sum. With the defaults this is the plain loop, bit for bit. After each task `.grad` holds
    the meta-gradient of the tasks so far, in addition to what else was accumulated there: it can
    be clipped, scaled or added to before `step()`. An aggregation, or a correction, of `T` tasks is
    computed after each of them, `T (T + 1) / 2` passes over gradients in total. The state of a
    `metagrad` and of the random numbers of an `aggregation` advances once per `step()`.

    Parameter groups, `state_dict`, learning rate schedulers, closures, hooks and `GradScaler` work
    as with `base`. `zero_grad()` discards the tasks marked since the last step, and so does
    clearing all `.grad`; a step without marked tasks is one of `base`. Parameters of several dtypes
    or devices are packed in the widest dtype on the first device.

    Args:
        params: parameters, parameter groups, or either with names (`model.named_parameters()`).
            [`metagrad.GSL`][fastmeta.metagrad.GSL] finds its layers by name, else by order: that of
            the network within a group. Without names, the head is the last weight matrix of the
            last group and what follows it.
        base: class (or factory) of the optimizer that applies the meta-gradient.
        metagrad: a correction of a first-order gradient, such as
            [`fastmeta.metagrad.GSLCorrection`][], [`metagrad.GSL`][fastmeta.metagrad.GSL], or
            [`metagrad.Reptile`][fastmeta.metagrad.Reptile], whose gradient is the displacement of
            the user's inner loop; by default the gradient stays as the loop computed it (which may
            be the exact one).
        aggregation: the task weights; by default those of the loop.
        **base_options: options of `base`, such as `lr`.

    Raises:
        ValueError: if `metagrad` needs an inner loop of its own, or its layers do not suit the
            parameters; or if `aggregation` needs losses or
            keeps a state.
        TypeError: if a parameter is complex, a DTensor or on the meta device.
    """

    def __init__(
        self,
        params: Any,
        base: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        *,
        metagrad: MetaGradient | None = None,
        aggregation: Aggregation | None = None,
        **base_options: Any,
    ) -> None:
        self._combination = Combination(
            FirstOrder() if metagrad is None else metagrad,
            Mean() if aggregation is None else aggregation,
        )
        own_loop = type(self.metagrad).task is not FirstOrder.task
        if own_loop and not isinstance(self.metagrad, (GSL, Reptile)):
            raise ValueError(
                f"metagrad.{type(self.metagrad).__name__} needs its own inner loop, but here the "
                "loop is yours; expected FirstOrder, Reptile, GSL or a correction such as "
                "GSLCorrection. For other meta-gradients use fastmeta.MetaLearner, which runs the "
                "inner loop."
            )
        check_of_gradients(self.aggregation)
        self.base = base(params, **base_options)
        self._check(self.base.param_groups)
        super().__init__(self.base.param_groups, dict(self.base.defaults))
        self._share_state()
        self._forget()

    def _forget(self) -> None:
        self._scale = 1.0  # of the last task
        self._effective = False  # whether the similarity loss had an effect since the last step
        self._warned = False

    @property
    def metagrad(self) -> MetaGradient:
        """The meta-gradient."""
        return self._combination.metagrad

    @property
    def aggregation(self) -> Aggregation:
        """The task weights."""
        return self._combination.aggregation

    @property
    def steps_taken(self) -> int:
        """The number of meta-steps taken."""
        return self._combination.step

    def _check(self, groups: list[dict[str, Any]]) -> None:
        for k, group in enumerate(groups):
            named = ((f"parameter {i} of group {k}", p) for i, p in enumerate(group["params"]))
            check_materialized(named)
            if not self._is_plain_loop:
                check_real(group["params"], k)
        if self._combination.similarity is not None:
            layer_masks(self._combination.similarity, self.base.param_groups)

    def _share_state(self) -> None:
        """Both optimizers act on the same groups and the same per-parameter state."""
        self.param_groups = self.base.param_groups
        self.state = self.base.state

    # --- marking tasks ---------------------------------------------------------------------------

    def task(self, scale: float = 1.0, inner_lr: float | None = None) -> TaskRecorder:
        """Marks one task; see [`fastmeta.optim.TaskRecorder`][].

        Args:
            scale: factor by which the query loss is multiplied in the loop, such as `1 / T`, or
                `scaler.get_scale() / T` with a `GradScaler`. Gradients are compared without it.
            inner_lr: rate of the inner gradient descent, for loops whose updates are not
                differentiable (in place, or by an inner optimizer). For
                [`metagrad.GSL`][fastmeta.metagrad.GSL], forward and backward passes are then all in
                the block, which keeps the graphs of all inner steps to its end.

        Raises:
            ValueError: if `scale` or `inner_lr` is not positive, or `inner_lr` is missing for an L2
                distance.
        """
        for name, value in (("scale", scale), ("inner_lr", inner_lr)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}.")
        params, self._scale = self._params(), scale
        finish, graphs = partial(self._finish, params), self._support_graphs(params, inner_lr)
        return TaskRecorder(params, finish, scale, inner_lr, graphs, self._combination.marks)

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _support_graphs(self, params: list[Tensor], inner_lr: float | None) -> SupportGraphs | None:
        similarity = self._combination.similarity
        if similarity is None or not params:
            return None
        if similarity.rate(self.steps_taken) == 0:
            self._set_effective()
            return None
        if similarity.lam_2 and inner_lr is None:
            raise ValueError(
                "metagrad.GSL with lam_2 compares gradients by their norms, for which it has to "
                "know the inner learning rate; expected opt.task(inner_lr=...), and inner steps of "
                "gradient descent."
            )
        masks = layer_masks(similarity, self.param_groups)
        context = self._combination.context(FlatLayout.of(params))
        return SupportGraphs(similarity, masks, context, inner_lr, self._set_effective)

    def _set_effective(self) -> None:
        self._effective = True

    @property
    def _is_plain_loop(self) -> bool:
        return not self._combination.marks and self._combination.similarity is None

    @torch.no_grad()
    def _finish(
        self, params: list[Tensor], task: TaskRecorder, before: Grads, query: Grads
    ) -> Grads:
        """`.grad` after a task, from `.grad` before it and the query gradient."""
        if task.graphs is not None:
            query = task.graphs.complete(query, params, task.scale)
        if self._combination.marks and params:
            return self._combination.add(params, task, before, query)
        return [add(b, q) for b, q in zip(before, query, strict=True)]

    # --- torch.optim.Optimizer -------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears gradients and marked tasks."""
        super().zero_grad(set_to_none)
        self._combination.tasks.discard()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], Loss]) -> Loss: ...

    def step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:
        """Lets `base` take its step with `.grad`.

        Args:
            closure: reevaluates the model (marking its tasks) and returns the loss. `base` is
                given the gradients of this one evaluation.

        Returns:
            The closure's loss, or `None`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._warn_if_unmarked()
        if self._combination.tasks.scales or self._effective:
            self._combination.commit()
        self._effective = False
        self.base.step()
        return loss

    def _warn_if_unmarked(self) -> None:
        marked = self._combination.tasks.scales or self._effective or self._is_plain_loop
        if marked or self._warned or all(param.grad is None for param in self._params()):
            return
        self._warned = True
        warn_unmarked(self.base, self.metagrad, self.aggregation)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Read by `GradScaler.step`, which unscales `.grad` itself."""
        check_loss_scale(self._scale, self.metagrad, self.aggregation)
        return False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to both optimizers; discards marked tasks.

        Raises:
            TypeError: if a parameter is complex, a DTensor or on the meta device.
            ValueError: if its layer is unknown.
        """
        if "_warned" in self.__dict__:
            self._combination.tasks.discard()
            self.base.add_param_group(param_group)
            try:
                self._check(self.base.param_groups[-1:])
            except (TypeError, ValueError):
                self.base.param_groups.pop()
                raise
        else:  # called by Optimizer.__init__ with the groups that base has already checked
            super().add_param_group(param_group)

    @override
    def state_dict(self) -> dict[str, Any]:
        """State of `base` (same layout) plus `"metagrad"`: meta-steps taken and its state."""
        return {
            **super().state_dict(),
            "metagrad": {"step": self.steps_taken, **self._combination.state},
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores `state_dict`; also accepts a state of `base` alone.

        Raises:
            ValueError: if the state is of another meta-gradient or other parameters.
        """
        plain = {key: value for key, value in state_dict.items() if key != "metagrad"}
        carried = dict(state_dict.get("metagrad", {}))
        step = int(carried.pop("step", self.steps_taken))
        self.metagrad.check_state(carried)
        super().load_state_dict(plain)
        self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})
        self._share_state()
        if "metagrad" in state_dict:
            self._combination.step, self._combination.state = step, carried

    def __getstate__(self) -> dict[str, Any]:
        old = self._combination
        saved = Combination(old.metagrad, old.aggregation)  # without the marked tasks
        saved.step, saved.state = old.step, old.state
        return {**super().__getstate__(), "base": self.base, "_combination": saved}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "base" in state:  # unpickled or copied, rather than loaded
            self._share_state()
            self._forget()
