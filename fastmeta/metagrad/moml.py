"""Meta-gradients at memories of the tasks' fast weights (MOML)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta._checks import check_bool, check_choice, check_integer
from fastmeta._options import forwards_options, named
from fastmeta.adaptation import Adaptation
from fastmeta.gradients import TaskGradients
from fastmeta.metagrad._moving_average import Form, check_beta, inner_of, pack, task_at_average
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient
from fastmeta.metagrad.task_losses import TaskLosses
from fastmeta.metagrad.wrapper import Wrapper, inner_by_name

_STATE = "moml"
_EXTRAS = ("moml_ids", "moml_memory", "moml_start")


class MOML(Wrapper):
    """The query gradient at a moving average of each task's fast weights, kept between meta-steps.

    Wang, Yuan, Ying, Yang 2023, "Memory-Based Optimization Methods for Model-Agnostic
    Meta-Learning and Personalized Federated Learning" (JMLR 24, arXiv 2106.04911). For a fixed set
    of tasks that recur with few, ever new examples, the average `u_i` is a better estimate of the
    fast weights than those of one draw. With `A_i(theta)` the fast weights of task `i` and `J_i`
    their Jacobian:

        u_i <- (1 - beta) u_i + beta A_i(theta)                                version 1
        u_i <- (1 - beta) u_i + beta (theta + (N/B) (A_i(theta) - theta))      version 2
        m_i = J_i^T grad Q_i(u_i)          form "paper"
        m_i = beta grad Q_i(u_i)           form "code": that of the authors, first order

    `beta=1` is MAML in the form of the paper, FOMAML in that of the code (version 1). In the form
    of the code the steps are shorter by the factor `beta`: compare at equally tuned outer learning
    rates. The paper has one inner step; others are taken as they come. A task's first memory is
    `A_i(theta)` when it is first seen; the authors compute all of them before training.

    Tasks are told apart by `TaskBatch.ids`; the same task several times in a meta-batch has the
    mean of its new memories. They are part of the learner's state: `P` numbers for each task.
    Query losses in results are those at `u_i`. Tasks that are left out keep their memory. Runs in
    the loop engine.

    Args:
        inner: computes `J_i^T`; by default [`FirstOrder`][fastmeta.metagrad.FirstOrder] in the form
            of the code, [`Exact`][fastmeta.metagrad.Exact] in that of the paper.
        beta: weight of the new fast weights, in (0, 1]; 0.3 is the authors' for sines with one
            example, 0.5 with three, 0.1 in version 2.
        form: see above.
        version: see above.
        tasks: number `N` of all tasks in version 2, for `B` in a meta-batch; by default that of
            those seen so far.
        move_all: whether the memories of other tasks move, too, `u_i <- (1 - beta) u_i + beta
            theta`, as in the authors' version 2 for one-shot images, not for sines.
        max_tasks: more distinct tasks are an error: they would not recur.

    Raises:
        ValueError: if an argument is out of range; or later, if tasks have no ids, there are more
            than `max_tasks`, or `inner` does not evaluate the query loss once.
    """

    own_state_names = (_STATE,)  # each memory is an entry of its own

    def __init__(
        self,
        inner: MetaGradient | None = None,
        beta: float = 0.3,
        form: Form = "code",
        version: int = 1,
        tasks: int | None = None,
        move_all: bool = False,
        max_tasks: int = 1000,
    ) -> None:
        check_beta(beta)
        check_choice("form", form, get_args(Form))
        if version not in (1, 2):
            raise ValueError(f"version must be 1 or 2, got {version!r}.")
        if tasks is not None:
            check_integer("tasks", tasks, 1)
        check_bool("move_all", move_all)
        check_integer("max_tasks", max_tasks, 1)
        super().__init__(inner_of(form, inner, "MOML"))
        self.beta = beta
        self.form: Form = form
        self.version = version
        self.tasks = tasks
        self.move_all = move_all
        self.max_tasks = max_tasks

    @override
    def check_state(self, state: Mapping[str, Any]) -> None:
        super().check_state({k: v for k, v in state.items() if not k.startswith(f"{_STATE}/")})

    @override
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        ids = losses.ids
        if ids is None:
            raise ValueError(
                "metagrad.MOML keeps a memory for each task: expected a TaskBatch with ids (T, m) "
                "that tell which task each is, such as those of fastmeta.data.SineTasks(grid=...)."
            )
        memory, start = context.state.get(_key(ids)), pack(params)
        known = sum(name.startswith(f"{_STATE}/") for name in context.state)
        share = (self.tasks or max(known, context.tasks)) / context.tasks

        def average(fast: Tensor) -> Tensor:
            before = fast if memory is None else memory
            if self.version == 2:
                fast = torch.lerp(start, fast, share)
            return torch.lerp(before, fast, self.beta)

        scale = self.beta if self.form == "code" else 1.0
        found, memory_now = task_at_average(
            self.inner, losses, params, adaptation, context, average, scale
        )
        own = {"moml_ids": ids, "moml_memory": memory_now}
        if self.move_all:
            own["moml_start"] = start
        return replace(found, extras={**found.extras, **own})

    @override
    def combine(
        self, gradients: TaskGradients, extras: Mapping[str, Tensor], context: StepContext
    ) -> TaskGradients:
        others = {name: extra for name, extra in extras.items() if name not in _EXTRAS}
        found = self.inner.combine(gradients, others, context)
        own = {name: extras[name] for name in _EXTRAS if name in extras}
        finite = gradients.finite
        kept = torch.ones(len(own["moml_ids"]), dtype=torch.bool) if finite is None else finite
        if (sharding := context.sharding) is not None:
            own = {name: sharding.gather(extra) for name, extra in own.items()}
            device = own["moml_memory"].device
            kept = sharding.gather(kept.to(device, torch.uint8)).bool()
        if kept.any():
            self._remember(context.state, {name: extra[kept] for name, extra in own.items()})
        return found

    def _remember(self, state: dict[str, Tensor], own: Mapping[str, Tensor]) -> None:
        new: dict[str, list[Tensor]] = {}
        for ids, memory in zip(own["moml_ids"], own["moml_memory"], strict=True):
            new.setdefault(_key(ids), []).append(memory)
        if self.move_all:
            for name in [n for n in state if n.startswith(f"{_STATE}/") and n not in new]:
                state[name] = torch.lerp(state[name], own["moml_start"][0], self.beta)
        for name, memories in new.items():
            state[name] = torch.stack(memories).mean(0) if len(memories) > 1 else memories[0]
        known = sum(name.startswith(f"{_STATE}/") for name in state)
        if known > self.max_tasks:
            raise ValueError(
                f"metagrad.MOML has seen {known} different tasks, and keeps as many numbers as "
                "there are parameters for each. Expected tasks that recur, told apart by "
                f"TaskBatch.ids, and at most max_tasks={self.max_tasks}; raise it if they do."
            )


def _key(ids: Tensor) -> str:
    return f"{_STATE}/{','.join(map(str, ids.tolist()))}"


def moml_by_name(others: Mapping[str, Callable[..., MetaGradient]]) -> Callable[..., MOML]:
    """Makes MOML of a meta-gradient that is given by its name.

    Args:
        others: the meta-gradients, by name.
    """

    @forwards_options(named(others, "of", "first-order"))
    def moml(
        of: str | None = None,
        beta: float = 0.3,
        form: Form = "code",
        version: int = 1,
        tasks: int | None = None,
        move_all: bool = False,
        max_tasks: int = 1000,
        **options: Any,
    ) -> MOML:
        """The query gradient at a moving average of each task's fast weights (MOML).

        Args:
            of: name of the meta-gradient, whose options are accepted, too; by default first-order,
                or exact in the form of the paper.
            beta: weight of the new fast weights, in (0, 1].
            form: code, that of the authors' code, whose steps are shorter by the factor beta, or
                paper.
            version: 1 or 2.
            tasks: number of all tasks, for version 2; by default of those seen so far.
            move_all: whether the memories of tasks that are not in the meta-batch move, too.
            max_tasks: largest number of different tasks.
            **options: of this meta-gradient.
        """
        of = of or ("first-order" if form == "code" else "exact")
        inner = inner_by_name(of, others, options)
        return MOML(inner, beta, form, version, tasks, move_all, max_tasks)

    return moml
