"""The co-learner of cooperative meta-learning (CML): a second head, trained on query sets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fastmeta.functional._inspection import is_compiled

# The head that makes a prediction; see `fastmeta.MetaLearner.predict`.
Head = Literal["main", "co-learner", "co-learner-alone"]
# Prefix of the names of its parameters and buffers.
PREFIX = "co_learner."


@dataclass(frozen=True, eq=False)
class CoLearner:
    """The co-learner of CML: a second head on a network's features, which augments their gradient.

    Shin, Han, Kim 2024, "Cooperative Meta-Learning with Gradient Augmentation" (arXiv 2406.04639):
    with the fast weights `psi'` of the features and `theta'` of the network's own head, the
    outer loss of a task is `L(theta'(psi'(x)), y) + gamma * L(phi(psi'(x)), y)` on its query set,
    `phi` being the co-learner's parameters. They learn by the outer optimizer alone: the inner
    loop neither evaluates nor changes them. (The authors' two Adam optimizers with one learning
    rate equal one Adam over all parameters, which is elementwise.) The network is not changed;
    after training the co-learner is dropped.

    It works with any adaptation, aggregation and meta-gradient but Leap and Reptile, which have no
    query loss. In the packed gradients that GSL and the aggregations compare, the co-learner's
    entries follow the network's; its support gradients are zero.

    Args:
        head: takes the output of the submodule `at`, and returns outputs like the network's.
        at: the name of a submodule of the network that each forward pass calls once and that
            returns a tensor, such as `"features"`. The head takes a copy of its output.
        gamma: the weight of the co-learner's loss. The authors' code uses 1 for images; for sine
            regression and node classification they report 0.2.

    Raises:
        ValueError: if `gamma` is negative or not finite, or the head has nothing to train.
    """

    head: nn.Module
    at: str
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"gamma must be finite and not negative, got {self.gamma}.")
        if not any(p.requires_grad for p in self.head.parameters()):
            raise ValueError("the co-learner's head has no parameter that requires a gradient.")

    def check_fit(self, module: nn.Module) -> None:
        """Rejects a network that this co-learner cannot be attached to.

        Raises:
            ValueError: if there is no submodule `at`, the network has a child `co_learner` or
                shares parameters with the head, or `torch.compile` holds it.
        """
        if any(map(is_compiled, module.modules())):
            raise ValueError(
                "a co-learner cannot be attached to a compiled network, whose graph may not expose "
                "the outputs of submodules; expected an ordinary one."
            )
        children = dict(module.named_children())
        if self.at not in dict(module.named_modules(remove_duplicate=False)):
            raise ValueError(
                f"the network has no submodule {self.at!r} to attach a co-learner to; expected "
                f"one of {', '.join(children)} or a part of it."
            )
        if PREFIX[:-1] in children:
            raise ValueError("the network has a child named co_learner already; rename it.")
        if not set(module.parameters()).isdisjoint(self.head.parameters()):
            raise ValueError("the co-learner shares parameters with the network; give it its own.")


@contextmanager
def capture_output(module: nn.Module, at: str, seen: list[Tensor]) -> Iterator[None]:
    """Appends copies of the outputs of the submodule `at` in this context to `seen`.

    Raises:
        TypeError: if an output is not a tensor.
    """

    def append(_module: nn.Module, _inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the submodule {at!r} returns a {type(output).__name__}; a co-learner needs "
                "one that returns a tensor."
            )
        # A copy: the next module may change it in place, and it may be in channels-last order.
        seen.append(output.clone(memory_format=torch.contiguous_format))

    handle = module.get_submodule(at).register_forward_hook(append)
    try:
        yield
    finally:
        handle.remove()
