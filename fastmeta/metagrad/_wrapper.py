"""Base class of meta-gradients made of another one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import Self, override

from fastmeta.gradients import TaskGradients
from fastmeta.metagrad.base import MetaGradient, StepContext


class Wrapper(MetaGradient):
    """Another meta-gradient with a changed query loss, or computed several times.

    Attributes:
        inner: the meta-gradient.
    """

    inner: MetaGradient

    @property
    @override
    def second_order(self) -> bool:
        return self.inner.second_order

    @property
    @override
    def needs_support_gradients(self) -> bool:
        return self.inner.needs_support_gradients

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the inner meta-gradient."""
        return self.inner.state_names

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
