"""GSL as a drop-in for the outer optimizer of an existing MAML loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.gradients.checks import check_materialized
from fastmeta.metagrad.gsl_rule import GslRule, Scope, Variant
from fastmeta.ops.weights import Magnitude
from fastmeta.optim._buckets import Bucket, buckets_of
from fastmeta.optim.recorder import Grads, TaskRecorder

Loss = TypeVar("Loss")


class GSLOptimizer(torch.optim.Optimizer):
    """Any torch optimizer, fed with GSL meta-gradients instead of plain FOMAML ones.

    Our reconstruction of "MAML via AHE update" (Tak & Hong 2024). In a FOMAML loop, build this in
    place of the outer optimizer and mark each task::

        opt = fastmeta.GSLOptimizer(model.parameters(), base=torch.optim.Adam, lr=1e-3)
        for tasks in loader:
            opt.zero_grad()
            for task in tasks:
                with opt.task() as t:
                    ...  # inner loop; t.support(grads) after each inner step
                    query_loss.backward()
            opt.step()

    With ``eta=0`` this is the plain loop, bit for bit. Parameter groups, ``state_dict``, learning
    rate schedulers, closures, hooks and ``GradScaler`` work as with ``base``. Tasks marked since
    the last step are forgotten by ``zero_grad()``; a step without marked tasks is one of ``base``.

    Args:
        params: parameters or parameter groups.
        base: class (or factory) of the optimizer that applies the meta-gradient.
        lr: its learning rate.
        variant: R0 to R3, see :class:`fastmeta.metagrad.GslRule`, also for the options below.
        eta: AHE rate; 0 is FOMAML.
        lam_c: weight of the cosine loss.
        lam_2: weight of the L2 loss.
        magnitude: length of the correction.
        ratio: see ``magnitude``.
        schedule: of ``eta`` over meta-steps.
        scope: ``"vector"`` compares whole gradients, ``"layer"`` each parameter tensor by itself.
        tau: temperature of R3's softmax.
        **base_options: further options of ``base``.

    Raises:
        ValueError: if an option is out of range.
        TypeError: if a parameter is a DTensor or on the meta device.
    """

    # Tells GradScaler to leave the unscaling to step(), which knows the rows.
    _step_supports_amp_scaling = True
    grad_scale: Tensor | None
    found_inf: Tensor | None

    def __init__(
        self,
        params: Any,
        base: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        *,
        lr: float | Tensor,
        variant: Variant = "R1",
        eta: float = 1.0,
        lam_c: float = 1.0,
        lam_2: float = 0.0,
        magnitude: Magnitude = "norm-match",
        ratio: float = 1.0,
        schedule: str = "constant",
        scope: Scope = "vector",
        tau: float = 1.0,
        **base_options: Any,
    ) -> None:
        if variant not in ("R0", "R1", "R2", "R3"):
            raise ValueError(
                f"variant must be one of R0, R1, R2, R3; got {variant!r}. For the others use "
                "fastmeta.GSL, which runs the inner loop itself."
            )
        self.rule = GslRule(variant, eta, lam_c, lam_2, magnitude, ratio, schedule, scope, tau)
        self.base = base(params, lr=lr, **base_options)
        self._check(self.base.param_groups)
        super().__init__(self.base.param_groups, dict(self.base.defaults))
        self._share()
        self._buckets: list[Bucket] | None = None
        self._scales: list[float] = []

    def _check(self, groups: list[dict[str, Any]]) -> None:
        for k, group in enumerate(groups):
            check_materialized(
                (f"parameter {i} of group {k}", p) for i, p in enumerate(group["params"])
            )

    def _share(self) -> None:
        """Both optimizers act on the same groups and the same per-parameter state."""
        self.param_groups = self.base.param_groups
        self.state = self.base.state

    # --- marking tasks ---------------------------------------------------------------------------

    def task(self, scale: float = 1.0) -> TaskRecorder:
        """Marks one task; see :class:`fastmeta.optim.TaskRecorder`.

        Args:
            scale: what the query loss is multiplied with in the loop, such as ``1 / T``. Support
                gradients are compared with the query gradients as they were before that.

        Raises:
            ValueError: if ``scale`` is not positive.
        """
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}.")
        return TaskRecorder(self._params(), self._record, scale)

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _record(self, query: Grads, inner: Grads | None, scale: float) -> None:
        if not self.rule.needs_inner and self.rule.variant != "R3":
            return  # .grad accumulates as in the plain loop: that is FOMAML
        if self.rule.needs_inner and inner is None:
            raise RuntimeError(
                f"GSL {self.rule.variant} compares query with support gradients, but task "
                f"{len(self._scales)} brought none. Call task.support(grads) after each inner "
                "step, or task.adapted(...), or use task.record(); eta=0 needs none."
            )
        position = {id(p): k for k, p in enumerate(self._params())}
        for bucket in self._bucket_list():
            places = [position[id(p)] for p in bucket.params]
            bucket.query.append([query[k] for k in places])
            if self.rule.needs_inner and inner is not None:
                bucket.inner.append([inner[k] for k in places])
        self._scales.append(scale)

    def _bucket_list(self) -> list[Bucket]:
        if self._buckets is None:
            self._buckets = buckets_of(self._params())
        return self._buckets

    # --- the meta-gradient -----------------------------------------------------------------------

    @torch.no_grad()
    def combine(self, grad_scale: Tensor | float = 1.0) -> None:
        """Replaces ``.grad`` by the GSL meta-gradient of the marked tasks.

        :meth:`step` does this by itself. Call it first to look at the gradient, or to clip it.

        Args:
            grad_scale: the loss scale of ``GradScaler`` in the query gradients (support gradients
                have none). ``.grad`` keeps it, so that ``scaler.unscale_(opt)`` may follow.
        """
        tasks = len(self._scales)
        if tasks == 0:
            return
        if self.rule.variant == "R3":
            self._combine_by_task(tasks, grad_scale)
        else:
            self._combine_rows(tasks, grad_scale)
        self._forget()

    def _combine_by_task(self, tasks: int, grad_scale: Tensor | float) -> None:
        first, *others = self._scales
        if any(scale != first for scale in others):
            raise ValueError(
                "GSL R3 weights the tasks itself: expected one scale for all of them, got "
                f"{self._scales}. Use opt.task(scale=1 / len(tasks)), or another variant."
            )
        buckets = self._bucket_list()
        stats = [ops.mean_similarity(b.query.filled) for b in buckets]
        total = torch.stack([s.to(stats[0]) for s in stats]).sum(0) / (first * grad_scale) ** 2
        weights = tasks * self.rule.task_weights(total)
        for bucket, own in zip(buckets, stats, strict=True):
            self._write(bucket, ops.combine(bucket.query.filled, weights.to(own)))

    def _combine_rows(self, tasks: int, grad_scale: Tensor | float) -> None:
        buckets = self._bucket_list()
        parts = [
            ops.row_similarity(
                b.query.filled, b.inner.filled, self.rule.segments(b.query.layout.bounds)
            )
            for b in buckets
        ]
        first = parts[0]
        # Query rows are scale * u. The rule sees u and v themselves; its u - c v is scaled after.
        # Filled in number by number: a copy from the host would wait for the GPU.
        scale = torch.cat([first.new_full((1, 1), s) for s in self._scales]) * grad_scale
        one = torch.ones_like(scale)
        stats = torch.cat([part.to(first) for part in parts], dim=1)
        stats = stats / torch.stack([scale, scale * scale, one], dim=-1)
        coef = self.rule.coefficients(stats)
        if coef.shape[-1] == 2:
            coef = coef * torch.stack([one, scale], dim=-1)
        column = 0
        for bucket, part in zip(buckets, parts, strict=True):
            own = coef if coef.shape[1] == 1 else coef[:, column : column + part.shape[1]]
            column += part.shape[1]
            buffers = [bucket.query.filled, bucket.inner.filled][: coef.shape[-1]]
            bounds = None if own.shape[1] == 1 else bucket.query.layout.bounds
            self._write(bucket, ops.combine(buffers, own.to(part), bounds))

    def _write(self, bucket: Bucket, flat: Tensor) -> None:
        for param, view in zip(bucket.params, bucket.query.layout.views(flat), strict=True):
            if param.grad is not None:  # unused by every task: stays None, as in a plain loop
                param.grad = view

    def _forget(self) -> None:
        self._scales = []
        for bucket in self._buckets or ():
            bucket.query.clear()
            bucket.inner.clear()

    # --- torch.optim.Optimizer -------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears gradients and marked tasks."""
        super().zero_grad(set_to_none)
        self._forget()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], Loss]) -> Loss: ...

    def step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:
        """Combines the marked tasks and lets ``base`` take its step.

        Args:
            closure: reevaluates the model (marking its tasks) and returns the loss. ``base`` is
                given the gradients of this one evaluation.

        Returns:
            The closure's loss, or ``None``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = getattr(self, "grad_scale", None)
        self.combine(1.0 if scale is None else scale)
        if scale is not None:
            for param in self._params():
                if param.grad is not None:
                    param.grad = param.grad / scale.to(param.grad)
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None or found_inf.item() == 0:
            self.base.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to both optimizers; marked tasks are forgotten.

        Raises:
            TypeError: if a parameter is a DTensor or on the meta device.
        """
        if "_buckets" in self.__dict__:
            self._forget()
            self._buckets = None
            self.base.add_param_group(param_group)
            try:
                self._check(self.base.param_groups[-1:])
            except TypeError:
                self.base.param_groups.pop()
                raise
        else:  # called by Optimizer.__init__ with the groups that base has already checked
            super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """State of ``base`` (same layout) plus ``"gsl"``: meta-steps taken and R2's weights."""
        return {**super().state_dict(), "gsl": self.rule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`; takes a state of ``base`` alone too."""
        plain = {key: value for key, value in state_dict.items() if key != "gsl"}
        super().load_state_dict(plain)
        self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})
        self._share()
        if "gsl" in state_dict:
            self.rule.load_state_dict(state_dict["gsl"])

    def __getstate__(self) -> dict[str, Any]:
        own = {"base": self.base, "rule": self.rule, "_buckets": None, "_scales": []}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "base" in state:  # unpickled or copied, rather than loaded
            self._share()
