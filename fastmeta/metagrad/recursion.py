"""The exact meta-gradient of MAML, without a graph of the whole inner loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta._checks import check_choice, check_integer
from fastmeta.adaptation import Cotangents, InnerStep
from fastmeta.metagrad._reverse_sweep import ReverseSweep
from fastmeta.metagrad.base import MetaGradient, StepContext
from fastmeta.trajectory.hvp import (
    hvp_forward,
    hvp_of_graph,
    hvp_reverse,
)
from fastmeta.trajectory.replay import Replay
from fastmeta.trajectory.schedule import Memory, states_kept

Hvp = Literal["auto", "reverse", "forward"]
_PRODUCTS = {"auto": hvp_reverse, "reverse": hvp_reverse, "forward": hvp_forward}


class Recursion(ReverseSweep):
    """The meta-gradient of `Exact` by a reverse sweep over the inner steps.

    The inner loop keeps the parameters before each step (and what the adaptation's
    [`pullback`][fastmeta.adaptation.Adaptation.pullback] needs), but no graph. The reverse sweep
    starts from the query gradient `v` at the last parameters and computes `v <- v - a H_k v` for
    gradient descent, and the corresponding vector-Jacobian products for momentum and Adam. It
    re-evaluates one step at a time, with the same random numbers and buffers, so that only one step
    has a graph.
    Kemaev et al. 2025, "MixFlow-MG" (arXiv 2505.00793).

    Buffers are constants: gradients through them, which [`Exact`][fastmeta.metagrad.Exact]
    includes, are left out.

    Args:
        hvp: how `H_k v` is computed. `"reverse"` differentiates `<grad, v>`. `"forward"`
            takes the tangent of the gradient; it rejects operations without a forward derivative,
            and differentiates operations of the module even under `torch.no_grad`. `"auto"`
            is `"reverse"`: forward took 1.4 times as long and 1.26 times the memory on the
            strided Conv-4 (5 to 25 images of Omniglot's size) and 2.5 times as long on small MLPs,
            in one run each (one CPU thread, torch 2.13). With activation checkpointing it is
            `"forward"`, in which blocks of the network can be recomputed.
        graphs: number of last inner steps whose graph is kept instead of re-evaluating them. With 1
            (the default) one inner step costs the same as in [`Exact`][fastmeta.metagrad.Exact], in
            time and in memory; 0 needs the least memory, and is the default and the only choice for
            `hvp="forward"`.
        layers: whose inner gradients are differentiated, see
            [`Exact`][fastmeta.metagrad.Exact].
        memory: how many states of the inner loop (parameters and state of the inner optimizer) are
            kept at once: `"all"` `K` of `K`; `"sqrt"` `ceil(sqrt(K)) + 1`, for which most inner
            steps are computed once or twice more; `"log"` fewer than `2 + log2(K)`, with as many
            computations of each step at most; or a number, see
            [`fastmeta.trajectory.Trajectory`][].

    Raises:
        NotImplementedError: in a meta-step with `hvp="forward"`, where torch has no forward
            derivative; not with the MLP engine, which has Hessian-vector products of its own.
        ValueError: if `layers` is no pattern, `hvp` is unknown, `graphs` is negative, or not 0 with
            `hvp="forward"`, which does not use kept graphs.
    """

    task_batchable = True

    def __init__(
        self,
        hvp: Hvp = "auto",
        graphs: int | None = None,
        layers: str = "all",
        memory: Memory = "all",
    ) -> None:
        super().__init__(layers)
        check_choice("hvp", hvp, _PRODUCTS)
        if graphs is None:
            graphs = 0 if hvp == "forward" else 1
        check_integer("graphs", graphs, 0)
        if graphs and hvp == "forward":
            raise ValueError(f"graphs must be 0 with hvp='forward', which uses none; got {graphs}.")
        if memory != "all" and graphs > 1:
            raise ValueError(f"graphs must be 0 or 1 with memory={memory!r}; got {graphs}.")
        states_kept(memory, 1)
        self.hvp = hvp
        self.graphs = graphs
        self.memory = memory

    @override
    def checkpointed(self) -> MetaGradient | None:
        if self.hvp == "forward" or not self.second_order:
            return self
        if self.hvp == "reverse" or self.graphs > 1:
            return None
        return Recursion("forward", layers=self.layers, memory=self.memory)

    @override
    def through_grads(
        self, step: InnerStep, cotangents: Cotangents, replay: Replay, context: StepContext
    ) -> Sequence[Tensor]:
        hvp = self._hvp(step, cotangents.grads, replay)
        return ops.inner_step(cotangents.params, hvp, -1.0)

    def _hvp(
        self, step: InnerStep, direction: Sequence[Tensor | None], replay: Replay
    ) -> list[Tensor | None]:
        """The Hessian of this step's support loss times `direction`."""
        if step.grads is not None:
            return hvp_of_graph(step.grads, step.params, direction)
        with replay.repeat(step.number) as loss:
            return _PRODUCTS[self.hvp](loss, step.params, direction)
