"""An example of a task that is yet to be loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class DataDescription:
    """Which example of a data set, and what is done to its position to load it.

    Args:
        index: its position.

    Attributes:
        index: see above.
        transforms: functions, one after the other, the first of the position.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.transforms: list[Callable[[Any], Any]] = []

    def copy(self) -> DataDescription:
        """The same example, whose transforms can be added to alone."""
        twin = DataDescription(self.index)
        twin.transforms = list(self.transforms)
        return twin


Description = list[DataDescription]  # of a task
