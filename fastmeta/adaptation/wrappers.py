"""Inner optimizers made of others: parameter groups, gradient clipping, schedules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta import schedules
from fastmeta._checks import check_positive
from fastmeta.adaptation.base import Adaptation
from fastmeta.adaptation.tape import Cotangents, Grads, Pullback


class Wrapper(Adaptation):
    """Another adaptation with a changed update.

    Args:
        inner: the adaptation.
    """

    def __init__(self, inner: Adaptation) -> None:
        self.inner = inner
        self.steps = inner.steps
        self.rates = inner.rates
        self.support_loss = inner.support_loss

    @property
    @override
    def own_rates(self) -> Sequence[Tensor]:
        return self.inner.own_rates

    @override
    def step_rates(self) -> None:
        self.inner.step_rates()

    @override
    def bind(self, params: Sequence[Tensor], names: Sequence[str]) -> None:
        self.inner.bind(params, names)
        self.rates = self.inner.rates

    @override
    def restricted(
        self, kept: Sequence[int], params: Sequence[Tensor], names: Sequence[str]
    ) -> Adaptation:
        other = copy.copy(self)
        other.inner = self.inner.restricted(kept, params, names)
        other.rates = other.inner.rates
        return other

    @override
    def adapts(self, step: int, params: Sequence[Tensor]) -> Sequence[bool]:
        return self.inner.adapts(step, params)

    @override
    def start(self, params: Sequence[Tensor]) -> list[Tensor]:
        return self.inner.start(params)


class Clipped(Wrapper):
    """Another adaptation, whose gradients are clipped by their global norm.

    As `torch.nn.utils.clip_grad_norm_`: all gradients are multiplied by
    `min(1, max_norm / (norm + 1e-6))`, which is differentiated, too.

    Args:
        inner: the adaptation.
        max_norm: largest norm of the gradients of all parameters together.

    Raises:
        ValueError: if `max_norm` is not positive.
    """

    def __init__(self, inner: Adaptation, max_norm: float) -> None:
        super().__init__(inner)
        check_positive("max_norm", max_norm)
        self.max_norm = max_norm

    def _clip(self, grads: Grads) -> list[Tensor | None]:
        known = [g for g in grads if g is not None]
        if not known:
            return list(grads)
        square = torch.stack([(g * g).sum() for g in known]).sum()
        # Its root has no derivative at zero, where nothing is clipped.
        norm = torch.where(square > 0, square, 1).sqrt()
        factor = torch.where(square > 0, self.max_norm / (norm + 1e-6), 1).clamp(max=1)
        return [None if g is None else g * factor for g in grads]

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        return self.inner.update(step, params, self._clip(grads), state)

    @override
    def pullback(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> Pullback:
        with torch.no_grad():
            clipped = self._clip(grads)
        inner = self.inner.pullback(step, params, clipped, state)

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            found = inner(d_params, d_state)
            known = [i for i, g in enumerate(grads) if g is not None]
            leaves = [g.detach().requires_grad_() for g in grads if g is not None]
            again: list[Tensor | None] = [None] * len(grads)
            for i, leaf in zip(known, leaves, strict=True):
                again[i] = leaf
            with torch.enable_grad():
                outputs = [g for g in self._clip(again) if g is not None]
            d_grads: list[Tensor | None] = [None] * len(grads)
            if known:
                cotangents = [found.grads[i] for i in known]
                for i, d in zip(
                    known, torch.autograd.grad(outputs, leaves, cotangents), strict=True
                ):
                    d_grads[i] = d
            return found._replace(grads=d_grads)

        return pullback


class Scheduled(Wrapper):
    """Another adaptation, the steps of which are multiplied by a factor that changes.

    For all inner optimizers here that is a schedule of the learning rate; decoupled weight decay
    follows it, as with `torch.optim.lr_scheduler`.

    Args:
        inner: the adaptation.
        schedule: the factor as a function of the inner step, from 0, or a text as of
            [`fastmeta.schedules.schedule`][]: `"warmup:10"`.
    """

    def __init__(self, inner: Adaptation, schedule: Callable[[int], float] | str) -> None:
        super().__init__(inner)
        self.schedule = schedules.schedule(schedule) if isinstance(schedule, str) else schedule

    def _moved(
        self, step: int, params: Sequence[Tensor], updated: Sequence[Tensor]
    ) -> list[Tensor]:
        factor = self.schedule(step)
        pairs = zip(params, updated, strict=True)
        return [p if new is p else p + factor * (new - p) for p, new in pairs]

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        updated, new_state = self.inner.update(step, params, grads, state)
        return self._moved(step, params, updated), new_state

    @override
    def pullback(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> Pullback:
        inner = self.inner.pullback(step, params, grads, state)
        kept = [g is None for g in grads]
        factor = self.schedule(step)

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            pairs = list(zip(d_params, kept, strict=True))
            found = inner([d if same else factor * d for d, same in pairs], d_state)
            total = [
                f if same else f + (1 - factor) * d
                for f, (d, same) in zip(found.params, pairs, strict=True)
            ]
            return found._replace(params=total)

        return pullback


class Groups(Adaptation):
    """An adaptation of its own for each group of parameters.

    ```python
    Groups({"head.*": SGD(lr=0.1), "*.weight": Muon(lr=0.02), "*": AdamW(lr=1e-3)})
    ```

    Args:
        groups: adaptations by pattern of parameter names (`fnmatch`); the first match counts.

    Attributes:
        steps: the number of inner steps of all of them.

    Raises:
        ValueError: if there are none, they differ in `steps`, one chooses support examples, or
            (from `bind`) a parameter matches no pattern or a pattern no parameter.
    """

    def __init__(self, groups: Mapping[str, Adaptation]) -> None:
        counts = {a.steps for a in groups.values()}
        if len(counts) != 1:
            raise ValueError(
                f"the adaptations of all groups must have the same steps; got {sorted(counts)}."
            )
        if any(a.support_loss is not None for a in groups.values()):
            raise ValueError(
                "all groups have one support loss, which the adaptation of none may choose. Choose "
                "for all of them: PrunedSupport(Groups(...))."
            )
        self.groups = dict(groups)
        self.steps = counts.pop()
        self._members: dict[str, list[int]] = {}

    @property
    @override
    def own_rates(self) -> Sequence[Tensor]:
        return [rate for group in self.groups.values() for rate in group.own_rates]

    @override
    def step_rates(self) -> None:
        for group in self.groups.values():
            group.step_rates()

    @override
    def bind(self, params: Sequence[Tensor], names: Sequence[str]) -> None:
        members: dict[str, list[int]] = {pattern: [] for pattern in self.groups}
        for i, name in enumerate(names):
            pattern = next((p for p in self.groups if fnmatchcase(name, p)), None)
            if pattern is None:
                raise ValueError(
                    f"no group has the parameter {name}; got the patterns "
                    f"{', '.join(self.groups)}. Add one, such as '*'."
                )
            members[pattern].append(i)
        unused = [pattern for pattern, own in members.items() if not own]
        if unused:
            raise ValueError(
                f"no parameter is in the group {', '.join(unused)}; got {', '.join(names)}."
            )
        for pattern, own in members.items():
            self.groups[pattern].bind([params[i] for i in own], [names[i] for i in own])
        self._members = members
        self.rates = [rate for group in self.groups.values() for rate in group.rates]

    def _parts(self) -> list[tuple[Adaptation, list[int]]]:
        if not self._members:
            raise RuntimeError("Groups is not bound to a network: call bind(params, names) first.")
        return [(self.groups[pattern], own) for pattern, own in self._members.items()]

    @override
    def adapts(self, step: int, params: Sequence[Tensor]) -> Sequence[bool]:
        result = [False] * len(params)
        for group, own in self._parts():
            for i, adapted in zip(own, group.adapts(step, [params[i] for i in own]), strict=True):
                result[i] = adapted
        return result

    @override
    def start(self, params: Sequence[Tensor]) -> list[Tensor]:
        return [s for group, own in self._parts() for s in group.start([params[i] for i in own])]

    def _split_state(
        self, params: Sequence[Tensor], state: Sequence[Tensor]
    ) -> list[Sequence[Tensor]]:
        parts, done = [], 0
        for group, own in self._parts():
            count = len(group.start([params[0].new_empty(0)] * len(own)))
            parts.append(state[done : done + count])
            done += count
        return parts

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        updated, new_state = list(params), []
        split = self._split_state(params, state)
        for (group, own), part in zip(self._parts(), split, strict=True):
            found = group.update(step, [params[i] for i in own], [grads[i] for i in own], part)
            for i, new in zip(own, found[0], strict=True):
                updated[i] = new
            new_state += found[1]
        return updated, new_state

    @override
    def pullback(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> Pullback:
        pullbacks = []
        split = self._split_state(params, state)
        for (group, own), part in zip(self._parts(), split, strict=True):
            chosen = [params[i] for i in own], [grads[i] for i in own]
            pullbacks.append((own, len(part), group.pullback(step, *chosen, part)))

        def pullback(d_params: Sequence[Tensor], d_state: Sequence[Tensor]) -> Cotangents:
            result = Cotangents(list(d_params), [], [None] * len(d_params), [])
            d_grads, done = list(result.grads), 0
            for own, count, inner in pullbacks:
                found = inner([d_params[i] for i in own], d_state[done : done + count])
                done += count
                for k, i in enumerate(own):
                    result.params[i], d_grads[i] = found.params[k], found.grads[k]
                result.state.extend(found.state)
                result.rates.extend(found.rates)
            return result._replace(grads=d_grads)

        return pullback
