"""Base class of meta-gradients that use another one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Self, override

from fastmeta._checks import check_choice
from fastmeta._options import construct
from fastmeta.gradients import TaskGradients
from fastmeta.metagrad.base import MetaGradient, StepContext


class Wrapper(MetaGradient):
    """A meta-gradient that changes the task that another one sees, or what it returns.

    Args:
        inner: the other one.

    Attributes:
        own_state_names: the entries of the state besides those of `inner`.
    """

    own_state_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, inner: MetaGradient) -> None:
        self.inner = inner

    @property
    @override
    def second_order(self) -> bool:
        return self.inner.second_order

    @property
    @override
    def needs_support_gradients(self) -> bool:
        return self.inner.needs_support_gradients

    @property
    @override
    def has_query_loss(self) -> bool:
        return self.inner.has_query_loss

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the inner meta-gradient, too."""
        return (*self.inner.state_names, *self.own_state_names)

    @override
    def check_state(self, state: Mapping[str, Any]) -> None:
        super().check_state(state)
        self.inner.check_state({k: v for k, v in state.items() if k not in self.own_state_names})

    @override
    def checkpointed(self) -> Self | None:
        inner = self.inner.checkpointed()
        if inner is None:
            return None
        other = copy.copy(self)
        other.inner = inner
        return other

    @override
    def prepare(self, params: Sequence[Tensor], names: Sequence[str]) -> Any:
        return self.inner.prepare(params, names)

    @override
    def combine(
        self, gradients: TaskGradients, extras: Mapping[str, Tensor], context: StepContext
    ) -> TaskGradients:
        return self.inner.combine(gradients, extras, context)


def innermost(metagrad: MetaGradient) -> MetaGradient:
    """The meta-gradient within all wrappers."""
    while isinstance(metagrad, Wrapper):
        metagrad = metagrad.inner
    return metagrad


def inner_by_name(
    of: str, others: Mapping[str, Callable[..., MetaGradient]], options: Mapping[str, Any]
) -> MetaGradient:
    """The inner meta-gradient of a wrapper that the option `of` names.

    Args:
        of: its name.
        others: the meta-gradients, by name.
        options: of the inner meta-gradient.

    Raises:
        ValueError: if the name is unknown, or an option has a wrong value.
        TypeError: if there is no such option.
    """
    check_choice("of", of, others)
    inner: MetaGradient = construct(f"metagrad {of!r}", others[of], options)
    return inner
