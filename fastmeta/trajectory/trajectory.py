"""An inner run that is differentiated by a reverse sweep, with few of its states in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta.adaptation import (
    Adaptation,
    Adapted,
    Grads,
    InnerStep,
    Tape,
    ThroughGrads,
    reverse_sweep,
    run_inner_loop,
)
from fastmeta.adaptation.inner_loop import inner_gradients
from fastmeta.inner_step import at_step
from fastmeta.trajectory.replay import Replay, Snapshot
from fastmeta.trajectory.schedule import Memory, states_kept, steps_to_next
from fastmeta.trajectory.store import Store

# From an inner step and its parameters to the gradients, with their graph.
Gradients = Callable[[int, list[Tensor]], Grads]


@dataclass(frozen=True)
class _State:
    """The state before an inner step; see `Store.keep`.

    Attributes:
        step: its number.
        params: the parameters.
        optimizer: the inner optimizer's state.
        grads: the gradients, if they are kept.
        snapshot: generators and buffers, if the following steps are run again.
    """

    step: int
    params: Callable[[], Any]
    optimizer: Callable[[], Any]
    grads: Callable[[], Any] | None = None
    snapshot: Snapshot | None = None


class States(Tape):
    """A tape that keeps states only: gradients and pullbacks are computed from them again.

    Args:
        adaptation: the inner optimizer.
        store: where the states are kept.
        gradients: computes the gradients of a step again; `None`: they are kept, too.
    """

    def __init__(self, adaptation: Adaptation, store: Store, gradients: Gradients | None) -> None:
        super().__init__()
        self._adaptation = adaptation
        self._store = store
        self._gradients = gradients
        self._states: list[_State] = []

    @override
    def record(
        self,
        adaptation: Adaptation,
        number: int,
        params: list[Tensor],
        grads: Grads,
        state: Sequence[Tensor],
        kept: Grads | None = None,
    ) -> None:
        keep = self._store.keep
        known = keep(grads) if self._gradients is None else None
        self._states.append(_State(number, keep(params), keep(state), known))

    @override
    def pop(self) -> InnerStep | None:
        if not self._states:
            return None
        state = self._states.pop()
        params = [p.detach().requires_grad_() for p in state.params()]
        graph: Grads | None = None
        if state.grads is not None:
            grads = state.grads()
        else:
            assert self._gradients is not None
            graph = self._gradients(state.step, params)
            grads = [None if g is None else g.detach() for g in graph]
        # Removed when it is used, as the tensors that it keeps are not needed afterwards.
        once = [self._adaptation.pullback(state.step, params, grads, state.optimizer())]
        return InnerStep(state.step, params, lambda *back: once.pop()(*back), graph)


class Trajectory:
    """An inner run of `K` steps, and its reverse sweep with at most `s` states in memory.

    The run keeps the states at the beginning of some segments, and all states of the last one. The
    sweep runs earlier segments again, divided in the same way, so that every step is run as rarely
    as possible: by binomial checkpointing (Griewank & Walther 2000, "Algorithm 799: Revolve"). With
    `s` states and at most `L` runs of each step `K = C(s + L - 1, L)` steps are possible.

    Args:
        adaptation: the inner optimizer.
        replay: the loss.
        memory: `"all"`: `s = K`, each step is run once. `"sqrt"`: `ceil(sqrt(K))` states and the
            current one, each step is run at most three times. `"log"`: `s` states, fewer than
            `2 + log2(K)` (4 of 32, 7 of 1000), each step is run at most `s` times. An integer of at
            least 2: `s`.
        graphs: number of last inner steps whose graph is kept; see `Tape`. Not with `store`.
        gradients: see `Tape`. Not with `store`.
        differentiated: see `run_inner_loop`.
        record: see `run_inner_loop`.
        store: keeps nothing but states, see `States`.
        again: whether gradients are computed again, with a graph for the sweep, which then has no
            need to repeat the step; else they are kept with the states in `store`.
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
        store: Store | None = None,
        again: bool = False,
    ) -> None:
        self._adaptation = adaptation
        self._replay = replay
        self._memory = memory
        self._graphs = graphs
        self._kept = gradients
        self._differentiated = differentiated
        self._record = record
        self._again = again
        self._store = store
        self._tape = Tape()
        self._stack: list[_State] = []
        self._states = 1
        self._end: list[Tensor] = []

    def run(
        self,
        params: Sequence[Tensor],
        steps: int,
        first: int = 0,
        state: Sequence[Tensor] | None = None,
    ) -> Adapted:
        """Runs the inner loop; arguments and result as of `run_inner_loop`."""
        self._states = states_kept(self._memory, steps)
        if state is None:
            state = self._adaptation.start(params)
        self._stack = []
        self._push(first, params, state, steps > self._states)
        adapted = self._run_to(first + steps, self._graphs, self._record)
        self._end = adapted.state
        return adapted

    def reverse(
        self, v: Sequence[Tensor], through: ThroughGrads
    ) -> tuple[Sequence[Tensor], list[Tensor]]:
        """From derivatives at the end of the run to those at its start; possible once.

        Args:
            v: derivatives with respect to the last parameters.
            through: see `reverse_sweep`.

        Returns:
            The derivatives with respect to the first parameters and to the learned rates.
        """
        d_state = [torch.zeros_like(s) for s in self._end]
        self._end = []
        v, _, d_rates = reverse_sweep(self._pop, v, d_state, self._adaptation.rates, through)
        return v, d_rates

    def _pop(self) -> InnerStep | None:
        """The last step that the sweep has not passed."""
        while self._stack:
            step = self._tape.pop()
            if step is not None:
                return step
            end = self._stack.pop().step
            if self._stack:
                snapshot = self._stack[-1].snapshot
                assert snapshot is not None
                with self._replay.returned_to(snapshot):
                    self._run_to(end, again=True)
        return None

    def _run_to(
        self, end: int, graphs: int = 0, record: bool = False, again: bool = False
    ) -> Adapted:
        """Runs from the last state that is kept to step `end`, and records the last segment."""
        losses: list[Tensor] = []
        inner_grads: list[list[Tensor | None]] = []
        while True:
            start, free = self._stack[-1], self._states - len(self._stack) + 1
            remaining = end - start.step
            is_last = remaining <= free
            count = remaining if is_last else steps_to_next(free, remaining)
            self._tape = self._new_tape(graphs)
            # The last step itself is not run again: its gradient is computed in the sweep.
            left = int(is_last and again and self._again)
            found = run_inner_loop(
                self._adaptation,
                self._replay.loss if is_last else self._replay.plain,
                start.params(),
                steps=count - left,
                first=start.step,
                state=start.optimizer(),
                record=record,
                tape=self._tape if is_last else None,
                differentiated=self._differentiated,
            )
            losses += found.losses
            inner_grads += found.inner_grads
            if left:
                self._replay.note(end - 1)
                self._tape.record(self._adaptation, end - 1, found.fast, [], found.state, None)
            if is_last:
                return Adapted(found.fast, inner_grads, losses, found.state)
            self._push(start.step + count, found.fast, found.state, True)

    def _push(
        self, step: int, params: Sequence[Tensor], state: Sequence[Tensor], again: bool
    ) -> None:
        store = self._store or Store()
        snapshot = self._replay.snapshot() if again else None
        self._stack.append(_State(step, store.keep(params), store.keep(state), None, snapshot))

    def _new_tape(self, graphs: int) -> Tape:
        if self._store is None:
            return Tape(graphs, self._kept)
        return States(self._adaptation, self._store, self._gradients if self._again else None)

    def _gradients(self, number: int, params: list[Tensor]) -> Grads:
        """The gradients of a recorded step, with their graph."""
        with self._replay.returned_to(self._replay.before(number)), at_step(number):
            value = self._replay.plain(params)
        adapted = self._adaptation.adapts(number, params)
        return inner_gradients(value, params, adapted, [True] * len(params))
