"""Diagnostics: comparison with a reference meta-gradient, and the descent condition of CML."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.aggregation import Mean
from fastmeta.functional import FunctionalModule
from fastmeta.learners._inference import adapt_to_task
from fastmeta.learners._precision import batch_in_precision, in_precision, preserve_generators
from fastmeta.learners.fidelity import Fidelity, fidelity, rate_names
from fastmeta.learners.learner import MetaLearner
from fastmeta.learners.nonfinite import NonFiniteGuard
from fastmeta.metagrad import Exact
from fastmeta.tasks import MetaBatch


def compare_with_exact(
    learner: MetaLearner, batch: MetaBatch, dtype: torch.dtype | None = None
) -> Fidelity:
    """Compares the meta-gradient of the learner's next step with MAML's, Finn et al. 2017, eq. 1.

    Both are with respect to the trainable parameters (including a co-learner's) without learned
    rates, and use the same random numbers. MAML's tasks have equal weights. The learner does not
    change, including the state of its meta-gradient, buffers and random number generators.

    Args:
        learner: with any combination of components.
        batch: the tasks.
        dtype: compute MAML's meta-gradient in `torch.float64` or `torch.float32`, as
            [`compare_precision`][fastmeta.learners.compare_precision] does; by default in the
            precision of the learner.

    Raises:
        ValueError: if the meta-batch is empty, the learner's engine cannot run it, or `dtype` is
            another one or less precise than the parameters.
        RuntimeError: if module and loss cannot be run in `dtype`.
    """
    exact = learner.with_components(metagrad=Exact(), aggregation=Mean())
    return _compare(learner, exact, batch, dtype)


def compare_precision(
    learner: MetaLearner, batch: MetaBatch, dtype: torch.dtype = torch.float64
) -> Fidelity:
    """Compares the meta-gradient of the learner's next step with its value in a higher precision.

    The first is computed as in training, with the learner's dtype, autocast, engine and fused ops;
    the reference by autograd, task by task and in `dtype`, on a copy of the module, its buffers,
    the co-learner, the learned rates, the loss if it is an `nn.Module`, and the inputs. Both use
    the same random numbers; on a GPU, dropout may draw other masks in another dtype. The learner
    does not change, including the state of its meta-gradient, buffers and random number generators.

    Args:
        learner: with any combination of components.
        batch: the tasks.
        dtype: of the reference, `torch.float64` or `torch.float32`.

    Raises:
        ValueError: if the meta-batch is empty, the learner's engine cannot run it, or `dtype` is
            another one or less precise than the parameters.
        RuntimeError: if module and loss cannot be run in `dtype`.
    """
    return _compare(
        learner, learner, batch, dtype, rates=bool(learner._current().spec.adaptation.rates)
    )


def _compare(
    learner: MetaLearner,
    reference: MetaLearner,
    batch: MetaBatch,
    dtype: torch.dtype | None,
    rates: bool = False,
) -> Fidelity:
    own = _gradients(learner.with_components(), batch)
    if dtype is None:
        found = _gradients(reference, batch)
    else:
        found = _gradients_in(dtype, in_precision(reference, dtype), batch)
    current = learner._current()
    bounds, names = current.buffers.outer.layout.bounds, current.spec.model.names
    compared = fidelity(own, found, bounds[: len(names) + 1], names)
    if not rates:
        return compared
    of_rates = fidelity(own, found, bounds[len(names) :], rate_names(names, bounds))
    return replace(compared, rates=of_rates)


def _gradients(learner: MetaLearner, batch: MetaBatch) -> tuple[Tensor, Tensor]:
    """The tasks' meta-gradients `(T, P)`, and their combination `(P,)`."""
    learner.non_finite_guard = NonFiniteGuard()  # the learner is a copy
    model = learner._current().spec.model
    with _preserve_state(model, model.params[0].device):
        found, _ = learner._task_gradients(batch)
        return found.meta(), found.combine(learner.aggregation.weights(found))


def _gradients_in(
    dtype: torch.dtype, learner: MetaLearner, batch: MetaBatch
) -> tuple[Tensor, Tensor]:
    """The same in `dtype`, for a copy of a learner."""
    device = learner._current().spec.model.params[0].device
    try:
        with torch.autocast(device.type, enabled=False):
            return _gradients(learner, batch_in_precision(batch, dtype))
    except RuntimeError as error:
        raise RuntimeError(
            f"the copy of the module in {dtype} failed: {error} Expected other tensors that the "
            "module or the loss uses to be buffers of an nn.Module, or cast to the dtype of its "
            "inputs. Otherwise use dtype=torch.float32."
        ) from error


@contextmanager
def _preserve_state(model: FunctionalModule, device: torch.device) -> Iterator[None]:
    """Restores buffers and random number generators on exit."""
    buffers = [(buffer, buffer.clone()) for _, buffer in model.named_buffers()]
    with preserve_generators(device):
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)


def descent_condition(learner: MetaLearner, batch: MetaBatch) -> dict[str, Tensor]:
    """The cosine between the query gradients of the main head and the co-learner, per parameter.

    Shin, Han, Kim 2024 (arXiv 2406.04639): if it is positive in every layer of the features, the
    sum of the two gradients is, to first order, a descent direction of the main head's loss.
    Both are computed at the fast weights; the learner does not change.

    Args:
        learner: with a co-learner.
        batch: the tasks.

    Returns:
        `(T,)` for each parameter that both losses depend on, by name.

    Raises:
        ValueError: if the learner has no co-learner.
    """
    if learner.co_learner is None:
        raise ValueError("the learner has no co-learner to compare with; expected one.")
    spec = learner._current().spec
    model = spec.model
    cosines: dict[str, list[Tensor]] = {}
    for task in batch:
        buffers = model.clone_buffers()
        fast = adapt_to_task(spec, task.support_x, task.support_y, buffers, None)
        fast = [p.requires_grad_() for p in fast]
        with torch.enable_grad():
            outputs = model.both(fast, buffers, task.query_x)
            losses = [learner.loss(output, task.query_y) for output in outputs]
        main, co = (
            torch.autograd.grad(loss, fast, retain_graph=True, allow_unused=True) for loss in losses
        )
        for name, a, b in zip(model.names, main, co, strict=True):
            if a is not None and b is not None:
                cosine = F.cosine_similarity(a.flatten(), b.flatten(), 0)
                cosines.setdefault(name, []).append(cosine)
    return {name: torch.stack(tasks) for name, tasks in cosines.items()}
