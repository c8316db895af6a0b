"""Meta-gradient corrections and task aggregations as a drop-in for an outer optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.aggregation import Aggregation, Mean
from fastmeta.gradients import TaskGradients
from fastmeta.gradients.checks import check_materialized
from fastmeta.metagrad import FirstOrder, MetaGradient, StepContext
from fastmeta.optim._marked_tasks import MarkedTasks, check_real, warn_unmarked
from fastmeta.optim.recorder import Grads, TaskRecorder

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
                    ...  # inner loop; t.support(grads) after each inner step
                    (query_loss / len(tasks)).backward()
            opt.step()

    `metagrad` corrects each task's gradient in `.grad`, using its mean support gradient, and
    `aggregation` decides the weights of their sum. With the defaults this is the plain loop, bit
    for bit. Parameter groups, `state_dict`, learning rate schedulers, closures, hooks and
    `GradScaler` work as with `base`. `zero_grad()` discards tasks marked since the last
    step; a step without marked tasks is one of `base`. Parameters of several dtypes or devices
    are packed in the widest dtype on the first device.

    Args:
        params: parameters or parameter groups.
        base: class (or factory) of the optimizer that applies the meta-gradient.
        metagrad: corrects a first-order gradient, such as [`fastmeta.metagrad.GSLCorrection`][]; by
            default the gradient stays as the loop computed it (which may be the exact one).
        aggregation: the task weights; by default those of the loop.
        **base_options: options of `base`, such as `lr`.

    Raises:
        ValueError: if `metagrad` has another gradient per task than FOMAML, which here is
            computed by the user's loop.
        TypeError: if a parameter is complex, a DTensor or on the meta device.
    """

    # GradScaler leaves the unscaling to step(), which has the task gradients.
    _step_supports_amp_scaling = True
    grad_scale: Tensor | None
    found_inf: Tensor | None

    def __init__(
        self,
        params: Any,
        base: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        *,
        metagrad: MetaGradient | None = None,
        aggregation: Aggregation | None = None,
        **base_options: Any,
    ) -> None:
        self.metagrad = FirstOrder() if metagrad is None else metagrad
        self.aggregation = Mean() if aggregation is None else aggregation
        if type(self.metagrad).task is not FirstOrder.task:
            raise ValueError(
                f"metagrad.{type(self.metagrad).__name__} needs its own inner loop, but here the "
                "loop is yours; expected FirstOrder or a correction of it such as GSL. For other "
                "meta-gradients use fastmeta.MetaLearner, which runs the inner loop."
            )
        self.base = base(params, **base_options)
        self._check(self.base.param_groups)
        super().__init__(self.base.param_groups, dict(self.base.defaults))
        self._share_state()
        self.steps_taken = 0
        self._state: dict[str, Tensor] = {}
        self._tasks = MarkedTasks()
        self._combined = False  # whether .grad is already the meta-gradient of the next step
        self._warned = False

    def _check(self, groups: list[dict[str, Any]]) -> None:
        for k, group in enumerate(groups):
            named = ((f"parameter {i} of group {k}", p) for i, p in enumerate(group["params"]))
            check_materialized(named)
            if not self._is_plain_loop:
                check_real(group["params"], k)

    def _share_state(self) -> None:
        """Both optimizers act on the same groups and the same per-parameter state."""
        self.param_groups = self.base.param_groups
        self.state = self.base.state

    # --- marking tasks ---------------------------------------------------------------------------

    def task(self, scale: float = 1.0) -> TaskRecorder:
        """Marks one task; see [`fastmeta.optim.TaskRecorder`][].

        Args:
            scale: factor by which the query loss is multiplied in the loop, such as `1 / T`.
                Gradients are compared without it.

        Raises:
            ValueError: if `scale` is not positive.
        """
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}.")
        params = self._params()
        return TaskRecorder(params, partial(self._record, params), scale)

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    @property
    def _needs_support(self) -> bool:
        return self.metagrad.needs_support_gradients or self.aggregation.needs_support_gradients

    @property
    def _is_plain_loop(self) -> bool:
        """Whether `.grad` as the loop accumulates it is the meta-gradient."""
        return not self._needs_support and type(self.aggregation) is Mean

    def _record(
        self, params: list[Tensor], query: Grads, support: Grads | None, scale: float
    ) -> None:
        if self._is_plain_loop or not params:
            return
        if self._needs_support and support is None:
            raise RuntimeError(
                f"metagrad.{type(self.metagrad).__name__} with aggregation."
                f"{type(self.aggregation).__name__} compares support gradients, but task "
                f"{len(self._tasks.scales)} has none. Call task.support(grads) after each inner "
                "step, or task.adapted(...), or use task.record()."
            )
        self._tasks.append(params, query, support if self._needs_support else None, scale)

    # --- the meta-gradient -----------------------------------------------------------------------

    @torch.no_grad()
    def combine(self, grad_scale: Tensor | float = 1.0) -> None:
        """Replaces `.grad` by the meta-gradient of the marked tasks.

        Called by `step`. Call it before to inspect or clip the gradient.

        Args:
            grad_scale: the loss scale of `GradScaler` in the query gradients (support gradients
                have none). `.grad` keeps it, so that `scaler.unscale_(opt)` may follow.

        Raises:
            ValueError: if the aggregation weights the tasks and their scales differ.
        """
        tasks = self._tasks
        if not tasks.scales:
            return
        outer = tasks.outer
        if not (isinstance(grad_scale, float) and grad_scale == 1):
            outer.filled.div_(grad_scale)
        context = StepContext(
            outer.layout,
            len(outer.layout.shapes),
            self.steps_taken,
            record_support=self._needs_support,
            state=self._state,
            precision=tasks.precision,
        )
        support = tasks.support.filled if self._needs_support else None
        found = self.metagrad.combine(TaskGradients(outer.filled, support), {}, context)
        flat = found.combine(self._weights(found) * grad_scale)
        for param, view in zip(tasks.params, outer.layout.views(flat), strict=True):
            if param.grad is not None:  # unused by every task: stays None, as in a plain loop
                param.grad = view.to(param)
        self.steps_taken += 1
        tasks.discard()
        self._combined = True

    def _weights(self, gradients: TaskGradients) -> Tensor:
        weights = self.aggregation.weights(gradients)
        # Filled one by one: a copy from the host would synchronise with the GPU.
        scales = torch.cat([weights.new_full((1,), scale) for scale in self._tasks.scales])
        if type(self.aggregation) is Mean:
            return scales
        if len(set(self._tasks.scales)) > 1:
            raise ValueError(
                f"aggregation.{type(self.aggregation).__name__} weights the tasks itself: expected "
                f"one scale for all of them, got {self._tasks.scales}. Use opt.task(scale=1 / "
                "len(tasks)), or aggregation.Mean."
            )
        return weights * len(scales) * scales

    def _discard_tasks(self) -> None:
        self._tasks.discard()
        self._combined = False

    # --- torch.optim.Optimizer -------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears gradients and marked tasks."""
        super().zero_grad(set_to_none)
        self._discard_tasks()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], Loss]) -> Loss: ...

    def step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:
        """Combines the marked tasks and lets `base` take its step.

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
        scale = getattr(self, "grad_scale", None)
        self.combine(1.0 if scale is None else scale)
        if scale is not None:
            for param in self._params():
                if param.grad is not None:
                    param.grad = param.grad / scale.to(param.grad)
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None or found_inf.item() == 0:
            self.base.step()
        self._combined = False
        return loss

    def _warn_if_unmarked(self) -> None:
        marked = self._tasks.scales or self._combined or self._is_plain_loop
        if marked or self._warned or all(param.grad is None for param in self._params()):
            return
        self._warned = True
        warn_unmarked(self.base, self.metagrad, self.aggregation)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to both optimizers; discards marked tasks.

        Raises:
            TypeError: if a parameter is complex, a DTensor or on the meta device.
        """
        if "_tasks" in self.__dict__:
            self._discard_tasks()
            self.base.add_param_group(param_group)
            try:
                self._check(self.base.param_groups[-1:])
            except TypeError:
                self.base.param_groups.pop()
                raise
        else:  # called by Optimizer.__init__ with the groups that base has already checked
            super().add_param_group(param_group)

    @override
    def state_dict(self) -> dict[str, Any]:
        """State of `base` (same layout) plus `"metagrad"`: meta-steps taken and its state."""
        return {**super().state_dict(), "metagrad": {"step": self.steps_taken, **self._state}}

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
            self.steps_taken, self._state = step, carried

    def __getstate__(self) -> dict[str, Any]:
        names = ("base", "metagrad", "aggregation", "steps_taken", "_state")
        own = {name: getattr(self, name) for name in names}
        fresh = {"_tasks": MarkedTasks(), "_combined": False, "_warned": False}
        return {**super().__getstate__(), **own, **fresh}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "base" in state:  # unpickled or copied, rather than loaded
            self._share_state()
