"""Whether a co-learner's gradient points where the network's own does."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fastmeta.learners.learner import MetaLearner
from fastmeta.tasks import TaskBatch


def descent_condition(learner: MetaLearner, batch: TaskBatch) -> dict[str, Tensor]:
    """The cosine between the main head's query gradient and the co-learner's, layer by layer.

    Shin, Han, Kim 2024 (arXiv 2406.04639): where it is positive in every layer of the features,
    the sum of the two gradients is, to first order, a descent direction of the main head's loss.
    Both are taken at the fast weights; nothing of the learner changes.

    Args:
        learner: with a co-learner.
        batch: the tasks.

    Returns:
        ``(T,)`` for each parameter of the network that both losses depend on, by name.

    Raises:
        ValueError: if the learner has no co-learner.
    """
    if learner.co_learner is None:
        raise ValueError("the learner has no co-learner whose gradient could be compared.")
    model = learner._model
    found: dict[str, list[Tensor]] = {}
    for task in batch:
        buffers = model.clone_buffers()
        fast = learner._adapt(task.support_x, task.support_y, buffers, None)
        fast = [p.requires_grad_() for p in fast]
        with torch.enable_grad():
            outputs = model.both(fast, buffers, task.query_x)
            losses = [learner.loss(output, task.query_y) for output in outputs]
        main, co = (
            torch.autograd.grad(loss, fast, retain_graph=True, allow_unused=True) for loss in losses
        )
        for name, a, b in zip(model.names, main, co, strict=True):
            if a is not None and b is not None:
                found.setdefault(name, []).append(cosine_similarity(a.flatten(), b.flatten(), 0))
    return {name: torch.stack(cosines) for name, cosines in found.items()}
