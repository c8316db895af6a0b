"""Parameter groups, each with an inner optimizer of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor
from typing_extensions import override

from fastmeta.adaptation.base import Adaptation
from fastmeta.adaptation.tape import Cotangents, Grads, Pullback


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
