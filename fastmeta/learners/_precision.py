"""A learner in a higher precision, and the check of the first meta-step against it."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmeta.functional import FunctionalModule
from fastmeta.functional.rng import RngState
from fastmeta.gradients.agreement import describe, layer_errors, statistics, worst_layer
from fastmeta.learners._trainable import TrainableStep
from fastmeta.learners.fidelity import rate_names
from fastmeta.learners.nonfinite import NonFiniteGuard
from fastmeta.metagrad import CentralDifference, MetaGradient
from fastmeta.metagrad.wrapper import innermost
from fastmeta.tasks import MetaBatch

if TYPE_CHECKING:
    from fastmeta.learners.learner import MetaLearner

MIN_COSINE = 0.95
"""The check of the first meta-step warns below this cosine with float32."""


def in_precision(learner: MetaLearner, dtype: torch.dtype) -> MetaLearner:
    """A learner of the same method with its own copy of all tensors, in `dtype`.

    It runs the tasks one after another by autograd, without autocast of its own and fused ops.

    Raises:
        ValueError: if `dtype` is neither float32 nor float64, or less precise than the parameters.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}.")
    spec, own = learner._current().spec, learner._current().spec.model
    given = own.params[0].dtype
    if torch.finfo(dtype).eps > torch.finfo(given).eps:
        raise ValueError(
            f"dtype must be at least as precise as the parameters, {given}; got {dtype}."
        )
    # Copied together, so that tensors that are shared between them stay shared.
    loss = spec.loss if isinstance(spec.loss, nn.Module) else None
    module, co_learner, adaptation, copied_loss = copy.deepcopy(
        (own.module, own.co_learner, spec.adaptation, loss)
    )
    for part in (module, None if co_learner is None else co_learner.head, copied_loss):
        if part is not None:
            part.double() if dtype == torch.float64 else part.float()
    for rate in adaptation.rates:
        rate.data = rate.data.to(dtype)
    model = FunctionalModule(
        module, checkpoint=own.checkpoint, co_learner=co_learner, penalty=own.penalty
    )
    other = copy.copy(learner)
    other.module, other.co_learner = module, co_learner
    other.check_precision = False
    other.non_finite_guard = NonFiniteGuard(sharding=learner.sharding)
    other._state = _cast(learner._state, dtype)
    other._aggregation_state = dict(learner._aggregation_state)
    other._built = replace(spec, model=model, adaptation=adaptation)
    if copied_loss is not None:
        other._built = replace(other._built, loss=copied_loss)
    other._step = TrainableStep.of(other._built, "loop")
    other._learned = other._step.learned
    return other


def batch_in_precision(batch: MetaBatch, dtype: torch.dtype) -> MetaBatch:
    """The meta-batch with its floating-point tensors in `dtype`."""
    return batch.map(lambda tensor: _cast(tensor, dtype))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Mapping):
        return {name: _cast(part, dtype) for name, part in value.items()}
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class Generators:
    """The states of the random number generators of torch, Python and NumPy.

    Args:
        device: whose generator is meant, beside that of the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._torch = RngState.now(device)
        self._python = random.getstate()
        self._numpy = np.random.get_state()

    def restore(self) -> None:
        """Sets the generators to these states."""
        self._torch.set()
        random.setstate(self._python)
        np.random.set_state(self._numpy)


@contextmanager
def preserve_generators(device: torch.device) -> Iterator[None]:
    """Restores all random number generators on exit."""
    before = Generators(device)
    try:
        yield
    finally:
        before.restore()


class FirstStepCheck:
    """Compares the first meta-gradient of a learner in reduced precision with float32.

    Created before the meta-step, of which it keeps a copy of all tensors and the states of the
    generators: so both have the same buffers and, on the CPU, the same dropout masks. The meta-step
    itself does not change.

    Args:
        learner: before its first meta-step.
    """

    def __init__(self, learner: MetaLearner) -> None:
        self._learner = learner
        self._precision = learner._current().spec.model.precision
        self._device = learner._current().spec.model.params[0].device
        self._generators = Generators(self._device)
        self._reference = in_precision(learner, torch.float32)

    @classmethod
    def of(cls, learner: MetaLearner) -> FirstStepCheck | None:
        """The check of the learner's next meta-step, or `None` if there is nothing to check."""
        if not learner.check_precision or learner.steps_taken:
            return None
        spec = learner._current().spec
        if not _differentiates_twice(spec.metagrad) or torch.finfo(spec.model.precision).bits >= 32:
            return None
        try:
            return cls(learner)
        except Exception as error:  # a diagnostic must not stop a training run that works
            _warn_unchecked(learner, error)
            return None

    def compare(self, batch: MetaBatch, flat: Tensor) -> None:
        """Compares the meta-gradient `(P,)` of the meta-step with that in float32; may warn."""
        try:
            with (
                preserve_generators(self._device),
                torch.autocast(self._device.type, enabled=False),
            ):
                self._generators.restore()
                exact, _ = self._reference.meta_gradient(batch_in_precision(batch, torch.float32))
        except Exception as error:
            _warn_unchecked(self._learner, error)
            return
        if message := self._message(flat, exact):
            _warn(self._learner, message)

    def _message(self, flat: Tensor, exact: Tensor) -> str | None:
        """What is wrong, or `None`; the same on all ranks."""
        name = str(self._precision).removeprefix("torch.")
        advice = (
            "Train in float32, or run that layer and those around it in float32 (in their forward, "
            "with torch.autocast(..., enabled=False)), or use fewer or smaller inner steps. "
            "check_precision=False skips this check."
        )
        if self._precision == torch.float16:
            advice = (
                "Use torch.bfloat16, whose range is that of float32, or multiply the loss by a "
                "constant and divide the learning rates by it. " + advice
            )
        if not exact.isfinite().all():
            return None  # not for want of precision
        skipped = int(self._learner.non_finite_guard.skipped)
        if skipped or not flat.isfinite().all():
            what = f"of {skipped} of the tasks " if skipped else ""
            return (
                f"the meta-gradient {what}of the first meta-step is not finite in {name}, but is "
                f"finite in float32. {advice}"
            )
        layout, count = self._reference._step.buffers.outer.layout, len(self._model.params)
        bounds, names = layout.bounds, self._model.names
        for what, part, labels in (
            ("meta-gradient", bounds[: count + 1], names),
            ("meta-gradient of the learned rates", bounds[count:], rate_names(names, bounds)),
        ):
            columns = slice(part[0], part[-1])
            cosine, ratio, error = statistics(flat[columns], exact[columns])
            if cosine >= MIN_COSINE:
                continue
            worst, size = worst_layer(layer_errors(flat, exact, part, labels))
            return (
                f"the {what} of the first meta-step in {name} does not agree with float32: "
                f"{describe(cosine, error, ratio)}; expected a cosine of at least {MIN_COSINE}. "
                f"The largest part of the error, {size:.2g}, is in {worst}. {advice}"
            )
        return None

    @property
    def _model(self) -> FunctionalModule:
        return self._reference._built.model


def _differentiates_twice(metagrad: MetaGradient) -> bool:
    # Differences of gradients lose as much precision as second derivatives, or more.
    return metagrad.second_order or isinstance(innermost(metagrad), CentralDifference)


def _warn_unchecked(learner: MetaLearner, error: Exception) -> None:
    if learner.sharding is not None:
        raise error  # the other ranks would wait for this one, or mistake what it sends next
    _warn(
        learner,
        "the precision of the first meta-step could not be checked, because its copy in float32 "
        f"failed: {type(error).__name__}: {error} check_precision=False skips this check.",
    )


def _warn(learner: MetaLearner, message: str) -> None:
    if learner.sharding is None or learner.sharding.rank == 0:
        warnings.warn(message, RuntimeWarning, stacklevel=6)
