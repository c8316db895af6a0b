"""Several steps on each task with a moving average of its fast weights (LocalMOML)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, get_args

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta._checks import check_bool, check_choice, check_integer, check_positive
from fastmeta._options import forwards_options, named
from fastmeta.adaptation import Adaptation, run_inner_loop
from fastmeta.gradients.sums import added
from fastmeta.metagrad._moving_average import Form, check_beta, inner_of, pack, task_at_average
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient, mean_grads
from fastmeta.metagrad.task_losses import TaskLosses
from fastmeta.metagrad.wrapper import Wrapper, inner_by_name


class LocalMOML(Wrapper):
    """Several local meta-steps on each task, whose sum is the task's meta-gradient.

    Wang, Yuan, Ying, Yang 2023 (JMLR 24, arXiv 2106.04911), for personalised federated learning:
    the tasks are clients, and ranks exchange one mean in a round of `local_steps` steps. From
    `theta_i = theta` and `u = A_i(theta)`, the fast weights, each local step is

        u       <- (1 - beta) u + beta A_i(theta_i)
        theta_i <- theta_i - local_lr d,    d = J_i^T grad Q_i(u)    form "paper"
                                            d = beta grad Q_i(u)     form "code"

    and the meta-gradient the sum of all `d`. With `torch.optim.SGD(params, lr=local_lr)` as the
    outer optimizer and the mean over tasks, the meta-step is the authors' `theta <- mean_i
    theta_i`. Nothing is kept between meta-steps. With one local step and `beta=1` it is FOMAML in
    the form of the code, MAML in that of the paper. The authors' code for federated learning has
    first-order steps without the factor `beta`: `inner=FirstOrder()`, `form="paper"`.

    Losses and outputs in results are those of the first local step; with `fresh=True`, the query
    loss is the mean over the local steps and the outputs are those of each on its own part. Runs in
    the loop engine.

    Args:
        inner: computes `J_i^T`; by default [`FirstOrder`][fastmeta.metagrad.FirstOrder] in the form
            of the code, [`Exact`][fastmeta.metagrad.Exact] in that of the paper.
        local_steps: number of local steps; 4 in the authors' federated runs, 5 for sines.
        local_lr: learning rate of the local steps; 1e-3 in the authors' federated runs.
        beta: weight of the new fast weights, in (0, 1]; 0.9 in the authors' federated runs.
        form: see above.
        fresh: whether each local step has examples of its own, as in the paper: the query set is
            split into `local_steps` parts, the support set into one more, the first of which is
            that of the initial `u`. By default each local step uses all examples.

    Raises:
        ValueError: if an argument is out of range; or later, if there are too few examples, or
            `inner` does not evaluate the query loss once.
    """

    def __init__(
        self,
        inner: MetaGradient | None = None,
        local_steps: int = 4,
        local_lr: float = 1e-3,
        beta: float = 0.9,
        form: Form = "code",
        fresh: bool = False,
    ) -> None:
        check_integer("local_steps", local_steps, 1)
        check_positive("local_lr", local_lr)
        check_beta(beta)
        check_choice("form", form, get_args(Form))
        check_bool("fresh", fresh)
        super().__init__(inner_of(form, inner, "LocalMOML"))
        self.local_steps = local_steps
        self.local_lr = local_lr
        self.beta = beta
        self.form: Form = form
        self.fresh = fresh

    @override
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        scale = self.beta if self.form == "code" else 1.0
        local = [p.detach() for p in params]
        memory: Tensor | None = None
        if self.fresh:
            first = self._part(losses, 0, 0).support
            memory = pack(run_inner_loop(adaptation, lambda p: first(p)[0], local).fast)

        def average(fast: Tensor) -> Tensor:
            return fast if memory is None else torch.lerp(memory, fast, self.beta)

        steps: list[TaskGradient] = []
        for h in range(self.local_steps):
            part = self._part(losses, h + 1, h) if self.fresh else losses
            found, memory = task_at_average(
                self.inner, part, local, adaptation, context, average, scale
            )
            steps.append(found)
            moves = zip(local, found.outer[: len(local)], strict=True)
            local = [p if g is None else p - self.local_lr * g for p, g in moves]
        support = [step.support for step in steps if step.support is not None]
        whole = _of_all_parts(steps) if self.fresh else steps[0]
        return replace(
            whole,
            outer=reduce(added, (step.outer for step in steps)),
            support=mean_grads(support) if support else None,
        )

    def _part(self, losses: TaskLosses, support: int, query: int) -> TaskLosses:
        if losses.part is None:
            raise ValueError("fresh=True needs the loop engine; expected engine='loop'.")
        return losses.part((support, self.local_steps + 1), (query, self.local_steps))


def _of_all_parts(steps: Sequence[TaskGradient]) -> TaskGradient:
    """The loss and outputs of local steps, each of which has its own part of the query set."""
    return replace(
        steps[0],
        query_loss=torch.stack([step.query_loss for step in steps]).mean(),
        query_output=torch.cat([step.query_output for step in steps]),
    )


def local_moml_by_name(
    others: Mapping[str, Callable[..., MetaGradient]],
) -> Callable[..., LocalMOML]:
    """Makes LocalMOML of a meta-gradient that is given by its name.

    Args:
        others: the meta-gradients, by name.
    """

    @forwards_options(named(others, "of", "first-order"))
    def local_moml(
        of: str | None = None,
        local_steps: int = 4,
        local_lr: float = 1e-3,
        beta: float = 0.9,
        form: Form = "code",
        fresh: bool = False,
        **options: Any,
    ) -> LocalMOML:
        """Several local meta-steps on each task, whose sum is its meta-gradient (LocalMOML).

        Args:
            of: name of the meta-gradient, whose options are accepted, too; by default first-order,
                or exact in the form of the paper.
            local_steps: number of local steps.
            local_lr: learning rate of the local steps; the step is the authors' if the outer
                optimizer is sgd with the same learning rate.
            beta: weight of the new fast weights, in (0, 1].
            form: code, whose steps are shorter by the factor beta, or paper.
            fresh: whether each local step has examples of its own.
            **options: of this meta-gradient.
        """
        of = of or ("first-order" if form == "code" else "exact")
        inner = inner_by_name(of, others, options)
        return LocalMOML(inner, local_steps, local_lr, beta, form, fresh)

    return local_moml
