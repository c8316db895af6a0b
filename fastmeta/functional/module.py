"""Stateless calls of an `nn.Module`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastmeta.functional._argument_checks import (
    as_scalar,
    check_autocast,
    check_checkpointing,
    check_examples,
    check_params,
)
from fastmeta.functional._buffers import Buffers
from fastmeta.functional._checkpointing import (
    Checkpoint,
    ForwardPlan,
    check_segments,
    plan_with_checkpoints,
)
from fastmeta.functional._dual_checkpointing import in_forward_mode
from fastmeta.functional._functional_call import call_with, has_repeated_parts
from fastmeta.functional._generation_cache import without_cache
from fastmeta.functional._prefix_cache import use_prefix_cache
from fastmeta.functional.co_learner import PREFIX, CoLearner, capture_output
from fastmeta.functional.head import LinearHead, capture_calls, find_head, head_inputs
from fastmeta.functional.outputs import prediction
from fastmeta.functional.predictor import Network, Predictor
from fastmeta.gradients.checks import check_module
from fastmeta.tasks import Examples

# A scalar function of the module's output and the targets.
Loss = Callable[[Any, Any], Tensor]
# A scalar function of the module's trainable parameters by name.
Penalty = Callable[[Mapping[str, Tensor]], Tensor]


class FunctionalModule:
    """An unchanged `nn.Module` as a function of its trainable parameters and its buffers.

    Tied parameters count once and stay tied. Parameters that do not require a gradient on
    construction keep the module's values; `current` follows changes. Running statistics are
    updated in the buffers passed, not in the module.

    Args:
        module: the module.
        autocast: the dtype of autocast in forward passes and the loss, `torch.bfloat16` or
            `torch.float16`; `None` leaves autocast as it is around the call.
        checkpoint: recompute activations in backward passes instead of keeping them, see
            `fastmeta.functional._checkpointing.CheckpointPlan`; `"second-order"`: in those of
            forward-over-reverse differentiation only.
        co_learner: a second head, whose parameters and buffers follow the module's.
        penalty: a function of the module's trainable parameters that is added to every loss.

    Attributes:
        module: the module; its `training` flag decides how BatchNorm and dropout behave, in the
            co-learner, too.
        names: names of the trainable parameters; those of the co-learner as `co_learner.<name>`.
        params: the trainable parameters, in the order of `names`.
        own: how many of them are the module's.
        autocast: see above.
        checkpoint: see above.
        co_learner: see above.
        penalty: see above.

    Raises:
        ValueError: if there is nothing to train, the parameters differ in dtype or device,
            `autocast` is another dtype or the parameters are not float32 for it, no part of
            the module can be recomputed, its own activation checkpointing is on, or the
            co-learner does not fit.
        TypeError: if the module is wrapped for data parallelism, or a parameter or buffer is a
            DTensor or on the meta device.
    """

    def __init__(
        self,
        module: nn.Module,
        autocast: torch.dtype | None = None,
        checkpoint: Checkpoint = False,
        co_learner: CoLearner | None = None,
        penalty: Penalty | None = None,
    ) -> None:
        check_module(module)
        check_checkpointing(module)
        self.module = module
        self.autocast = autocast
        self.checkpoint = checkpoint
        self.co_learner = co_learner
        self.penalty = penalty
        trainable = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        if not trainable:
            raise ValueError("the module has no parameter that requires a gradient.")
        self.names = [name for name, _ in trainable]
        self.params: list[nn.Parameter] = [param for _, param in trainable]
        self.own = len(trainable)
        self._repeated = has_repeated_parts(module)
        self._plan: ForwardPlan | None = None  # within `planned`
        self._head: FunctionalModule | None = None
        self._all = list(module.parameters())
        if co_learner is not None:
            co_learner.check_fit(module)
            self._head = type(self)(co_learner.head, autocast)
            self.names += [PREFIX + name for name in self._head.names]
            self.params += self._head.params
            self._all += self._head._all
        self._trainable = [p.requires_grad for p in self._all]
        check_params(self.params)
        if autocast is not None:
            check_autocast(autocast, self.params[0].dtype)
        if checkpoint:
            check_segments(module)

    def current(self) -> FunctionalModule:
        """This, or a new one if `requires_grad` of a parameter has changed since it was built.

        Raises:
            ValueError: as on construction.
        """
        if [p.requires_grad for p in self._all] == self._trainable:
            return self
        return type(self)(
            self.module, self.autocast, self.checkpoint, self.co_learner, self.penalty
        )

    def __call__(self, params: Sequence[Tensor], buffers: Buffers, x: Examples) -> Any:
        """The module's output for `x` with `params` (in the order of `names`) and buffers.

        Args:
            params: the parameters, or a `Predictor`.
            buffers: of the module; updated.
            x: the only argument of the module, or a mapping of its keyword arguments.
        """
        return self._run(params, buffers, x, nullcontext())

    def both(self, params: Sequence[Tensor], buffers: Buffers, x: Examples) -> tuple[Any, Any]:
        """The module's and the co-learner's output for `x`, from one forward pass.

        Raises:
            RuntimeError: if the submodule that the co-learner is attached to does not run exactly
                once.
        """
        assert self.co_learner is not None
        assert self._head is not None
        seen: list[Tensor] = []
        capture = capture_output(self.module, self.co_learner.at, seen)
        output = self._run(params, buffers, x, capture)
        if len(seen) != 1:
            raise RuntimeError(
                f"a forward pass ran the submodule {self.co_learner.at!r} {len(seen)} times; a "
                "co-learner needs one that runs once."
            )
        self.co_learner.head.train(self.module.training)
        own = {n.removeprefix(PREFIX): b for n, b in buffers.items() if n.startswith(PREFIX)}
        return output, self._head(params[self.own :], own, seen[0])

    def _run(
        self,
        params: Sequence[Tensor],
        buffers: Buffers,
        x: Examples,
        capture: AbstractContextManager[None],
    ) -> Any:
        if isinstance(params, Predictor):
            return params.outputs(Network(self, buffers, x))
        if self._head is not None:
            params = params[: self.own]
            buffers = {n: b for n, b in buffers.items() if not n.startswith(PREFIX)}
        values = {**dict(zip(self.names[: self.own], params, strict=True)), **buffers}
        own = self.params[: self.own]
        plan = self._plan or self._new_plan()
        cached = nullcontext() if self.checkpoint else use_prefix_cache(self.module, own, params)
        # The hook that captures comes last, so that fusion does not take it for a user's.
        args, kwargs = ((), dict(x)) if isinstance(x, Mapping) else ((x,), {})
        with self._precision(), plan(), cached, capture:
            return call_with(self.module, values, args, kwargs, self._repeated)

    @contextmanager
    def planned(self) -> Iterator[None]:
        """Inspects the module once for all forward passes in this context; contexts nest.

        Outside of it, each forward pass determines anew which parts are checkpointed or run as
        compiled ops. In this context only tensors, hooks and training modes of the module may
        change, not its submodules or their settings. After such a change, results equal those
        outside up to rounding; a hook that is registered in this context may see images in
        channels-last order until it is left.
        """
        if self._plan is not None:
            yield
            return
        self._plan = self._new_plan()
        try:
            with nullcontext() if self._head is None else self._head.planned():
                yield
        finally:
            self._plan = None

    def _plan_for(self, part: nn.Module) -> ForwardPlan:
        """The plan of the module, or of a part that is checkpointed; ordinary calls here."""
        return nullcontext

    def _new_plan(self) -> ForwardPlan:
        check_checkpointing(self.module)
        plan = plan_with_checkpoints(self.module, self._plan_for, self.checkpoint)
        return without_cache(self.module, plan)

    def evaluate(
        self,
        loss: Loss,
        params: Sequence[Tensor],
        buffers: Buffers,
        x: Examples,
        y: Examples,
        capture: AbstractContextManager[None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss and output for `x` and targets `y`; `capture` is the context of the forward pass.

        The loss gets the output as the module returns it; of one that is not a tensor, the
        `prediction` is returned.

        Raises:
            ValueError: if there are no examples, or the loss is not a scalar.
            TypeError: if the loss is not a tensor.
        """
        check_examples(x)
        if in_forward_mode() and isinstance(y, Tensor) and y.is_floating_point():
            # The backward pass of F.mse_loss needs a tangent of both its arguments.
            y = forward_ad.make_dual(y, torch.zeros_like(y))
        with self._precision():
            output = self._run(params, buffers, x, capture or nullcontext())
            value = as_scalar(self._computed(loss)(output, y))
        return self._penalized(value, params), prediction(output)

    def _penalized(self, value: Tensor, params: Sequence[Tensor]) -> Tensor:
        """The loss plus the penalty of the parameters, if there is one."""
        if self.penalty is None:
            return value
        named = dict(zip(self.names[: self.own], params, strict=False))
        return value + as_scalar(self.penalty(named))

    def _computed(self, loss: Loss) -> Loss:
        """The loss as it is computed."""
        return loss

    def find_head(self) -> LinearHead | None:
        """The network's last layer, if that is a plain linear one."""
        return find_head(self.module, self.params[: self.own], self.names[: self.own])

    def evaluate_with_features(
        self,
        loss: Loss,
        params: Sequence[Tensor],
        buffers: Buffers,
        x: Examples,
        y: Examples,
        head: LinearHead,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """`evaluate`, and the features: the inputs of the head, `(n, d)`.

        `None` if the network's outputs are not those `(n, classes)` of one call of the head.
        """
        seen: list[tuple[object, object]] = []
        capture = capture_calls(self.module.get_submodule(head.name), seen)
        value, output = self.evaluate(loss, params, buffers, x, y, capture)
        features = head_inputs(seen, output)
        return value, output, None if features is None or features.dim() != 2 else features

    def evaluate_query(
        self,
        loss: Loss,
        params: Sequence[Tensor],
        buffers: Buffers,
        x: Examples,
        y: Examples,
    ) -> tuple[Tensor, Tensor]:
        """`evaluate` with the co-learner's loss added, if there is one."""
        if self.co_learner is None:
            return self.evaluate(loss, params, buffers, x, y)
        check_examples(x)
        with self._precision():
            output, co_output = self.both(params, buffers, x)
            loss = self._computed(loss)
            main = as_scalar(loss(output, y))
            co_loss = as_scalar(loss(co_output, y))
        value = main + self.co_learner.gamma * co_loss
        return self._penalized(value, params), prediction(output)

    def evaluate_co_learner(
        self,
        loss: Loss,
        params: Sequence[Tensor],
        buffers: Buffers,
        x: Examples,
        y: Examples,
    ) -> Tensor:
        """The co-learner's loss alone, with no gradient in its own parameters."""
        check_examples(x)
        fixed = [*params[: self.own], *(p.detach() for p in params[self.own :])]
        with self._precision():
            value = as_scalar(self._computed(loss)(self.both(fixed, buffers, x)[1], y))
        return self._penalized(value, params)

    @property
    def precision(self) -> torch.dtype:
        """The dtype of forward passes: that of autocast, here or around the call, or `params`'."""
        like = self.params[0]
        if self.autocast is None and torch.is_autocast_enabled(like.device.type):
            return torch.get_autocast_dtype(like.device.type)
        return self.autocast or like.dtype

    def _precision(self) -> AbstractContextManager[None]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.params[0].device.type, self.autocast)

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The module's buffers, then the co-learner's as `co_learner.<name>`."""
        yield from self.module.named_buffers()
        if self._head is not None:
            for name, buffer in self._head.named_buffers():
                yield PREFIX + name, buffer

    def clone_buffers(self) -> Buffers:
        """A copy of the buffers for one task."""
        return {name: buffer.clone() for name, buffer in self.named_buffers()}
