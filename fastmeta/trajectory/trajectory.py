"""An inner run that is differentiated by a reverse sweep, with few of its states in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastmeta._checks import check_choice, check_integer
from fastmeta.adaptation import Adaptation, Adapted, Tape, ThroughGrads, run_inner_loop
from fastmeta.trajectory.replay import Replay, Snapshot

# Which states of a run are kept; see `Trajectory`.
Memory = Literal["all", "sqrt", "log"] | int


@dataclass(frozen=True)
class _Boundary:
    """The state before an inner step, from which the following steps are run again."""

    step: int
    params: Sequence[Tensor]
    state: Sequence[Tensor]
    snapshot: Snapshot | None  # None: no step after it is run again


class Trajectory:
    """The states of an inner run of `K` steps, as a tree whose leaves are recorded one at a time.

    With `L` levels every node has at most `b = ceil(K ** (1 / L))` children. In memory are the
    states at the beginning of the nodes on one path and of their earlier siblings, and the recorded
    steps of one leaf: at most `L * b` states; the steps of the other leaves are run again. That is
    at most `L * K` inner steps in all, besides those that the reverse sweep repeats itself.
    Engstrom et al. 2025, "Optimizing ML Training with Metagradient Descent" (arXiv 2503.13751),
    have such a tree with `b` fixed.

    Args:
        adaptation: the inner optimizer.
        replay: the loss.
        memory: `"all"` is one level, `"sqrt"` two, `"log"` as many as needed for `b = 2`, and a
            number is the maximum of states, with as few levels as it takes.
        graphs: number of last inner steps whose graph is kept; see `Tape`.
        gradients: see `Tape`.
        differentiated: see `run_inner_loop`.
        record: see `run_inner_loop`.
    """

    def __init__(
        self,
        adaptation: Adaptation,
        replay: Replay,
        memory: Memory = "all",
        graphs: int = 0,
        gradients: bool = False,
        differentiated: Sequence[Sequence[bool]] | None = None,
        record: bool = False,
    ) -> None:
        self._adaptation = adaptation
        self._replay = replay
        self._memory = memory
        self._graphs = graphs
        self._gradients = gradients
        self._differentiated = differentiated
        self._record = record
        self._tape = Tape()
        self._stack: list[_Boundary] = []
        self._branches = 1
        self._d_state: Sequence[Tensor] = []

    def run(
        self,
        params: Sequence[Tensor],
        steps: int,
        first: int = 0,
        state: Sequence[Tensor] | None = None,
    ) -> Adapted:
        """Runs the inner loop; arguments and result as of `run_inner_loop`.

        Raises:
            ValueError: if `memory` is a number that is too small for so many steps.
        """
        self._branches = branches(self._memory, steps)
        if state is None:
            state = self._adaptation.start(params)
        again = steps > self._branches
        snapshot = self._replay.snapshot() if again else None
        self._stack = [_Boundary(first, params, state, snapshot)]
        adapted = self._record_leaf(first + steps, self._graphs, self._record)
        self._d_state = [torch.zeros_like(s) for s in adapted.state]
        return adapted

    def reverse(
        self, v: Sequence[Tensor], through: ThroughGrads
    ) -> tuple[Sequence[Tensor], list[Tensor]]:
        """From derivatives at the end of the run to those at its start; possible once.

        Args:
            v: derivatives with respect to the last parameters.
            through: see `Tape.reverse_sweep`.

        Returns:
            The derivatives with respect to the first parameters and to the learned rates.
        """
        rates = self._adaptation.rates
        d_state, d_rates = self._d_state, [torch.zeros_like(r) for r in rates]
        while self._stack:
            v, d_state, found = self._tape.reverse_sweep(v, d_state, rates, through)
            d_rates = [a + b for a, b in zip(d_rates, found, strict=True)]
            end = self._stack.pop().step
            if self._stack:
                snapshot = self._stack[-1].snapshot
                assert snapshot is not None
                with self._replay.returned_to(snapshot):
                    self._record_leaf(end)
        return v, d_rates

    def _record_leaf(self, end: int, graphs: int = 0, record: bool = False) -> Adapted:
        """Runs from the last boundary to step `end`, and records the last leaf."""
        losses: list[Tensor] = []
        inner_grads: list[list[Tensor | None]] = []
        while True:
            start = self._stack[-1]
            remaining = end - start.step
            is_leaf = remaining <= self._branches
            count = remaining if is_leaf else _largest_power(self._branches, remaining)
            self._tape = Tape(graphs, self._gradients)
            found = run_inner_loop(
                self._adaptation,
                self._replay.loss if is_leaf else self._replay.plain,
                start.params,
                steps=count,
                first=start.step,
                state=start.state,
                record=record,
                tape=self._tape if is_leaf else None,
                differentiated=self._differentiated,
            )
            losses += found.losses
            inner_grads += found.inner_grads
            if is_leaf:
                return Adapted(found.fast, inner_grads, losses, found.state)
            snapshot = self._replay.snapshot()
            self._stack.append(_Boundary(start.step + count, found.fast, found.state, snapshot))


def branches(memory: Memory, steps: int) -> int:
    """The number `b` of children of a node, see `Trajectory`.

    Raises:
        ValueError: if `memory` is unknown, or a number that is too small for so many steps.
    """
    if isinstance(memory, str):
        check_choice("memory", memory, ("all", "sqrt", "log"))
        if memory == "log":
            return 2
        return max(steps, 1) if memory == "all" else _root(steps, 2)
    check_integer("memory", memory, 1)
    states = {}
    for levels in range(1, max(steps, 2).bit_length() + 1):
        b = _root(steps, levels)
        states[levels] = levels * b
        if states[levels] <= memory:
            return b
    raise ValueError(
        f"memory={memory} states are too few for {steps} inner steps; expected at least "
        f"{min(states.values())}, or 'log'."
    )


def _root(steps: int, levels: int) -> int:
    """The smallest `b` with `b ** levels >= steps`."""
    b = 1
    while math.pow(b, levels) < steps:
        b += 1
    return b


def _largest_power(base: int, below: int) -> int:
    """The largest power of `base` that is smaller than `below`, at least 1."""
    power = 1
    while base > 1 and power * base < below:
        power *= base
    return power
