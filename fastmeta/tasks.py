"""Tasks and meta-batches, which samplers yield and learners consume."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias

import torch
from torch import Tensor
from typing_extensions import NamedTuple, TypeVar

# Inputs or targets of unknown kind: a tensor, a mapping of names to tensors or (targets) `None`.
Examples: TypeAlias = Any
TensorFn = Callable[[Tensor], Tensor]
# The kinds of inputs and targets; those of `TaskBatch` without parameters are tensors.
X = TypeVar("X", bound=Tensor | Mapping[str, Tensor], default=Tensor)
Y = TypeVar("Y", bound=Tensor | Mapping[str, Tensor] | None, default=Tensor)

_FIELDS = ("support_x", "support_y", "query_x", "query_y")


class Task(NamedTuple, Generic[X, Y]):
    """One task (episode): support and query sets, without a task dimension.

    Inputs and targets are tensors or mappings of names to tensors; targets may be `None`. See
    [`TaskBatch`][fastmeta.TaskBatch].
    """

    support_x: X
    support_y: Y
    query_x: X
    query_y: Y


@dataclass(frozen=True)
class TaskBatch(Generic[X, Y]):
    """A meta-batch of `T` tasks of equal size.

    Inputs and targets are tensors, or mappings of names to tensors, each of which begins with
    `(T, n)`. The module gets a tensor as its only argument and a mapping as keyword arguments, as
    models of Hugging Face expect: `{"input_ids": ..., "attention_mask": ...}`.

    Attributes:
        support_x: `(T, n_support, *input)`, floating point or integer ids (of tokens or nodes),
            never cast.
        support_y: `(T, n_support)` int64 class indices `0..ways-1`, or
            `(T, n_support, *output)` floating point for regression; or `None` if the loss needs no
            targets, because the inputs hold them (see [`fastmeta.model_loss`][]).
        query_x: `(T, n_query, *input)`, of the dtype of `support_x`.
        query_y: `(T, n_query)` int64, or `(T, n_query, *output)` floating point; or `None`.
        ids: `(T, m)` int64, what each task is made of, where the same recurs in other tasks: of
            tasks that are made of classes, the dataset's class of each label; `None` if unknown.

    Raises:
        ValueError: if the tensors differ in `T`, inputs and targets in their number, or a
            support or query set has no examples.
        TypeError: if inputs or targets are neither tensors nor mappings of names to tensors.
    """

    support_x: X
    support_y: Y
    query_x: X
    query_y: Y
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        for name in _FIELDS:  # tokenizers return mappings of other kinds, unknown to vmap
            object.__setattr__(self, name, _as_dict(getattr(self, name)))
        support, query = (
            _check_sets(self, split, ("tasks", "examples"))[0] for split in ("support", "query")
        )
        if support != query:
            raise ValueError(
                f"support and query must have equally many tasks; got {support} "
                f"support tasks and {query} query tasks."
            )
        if self.ids is not None and (self.ids.dim() != 2 or len(self.ids) != support):
            raise ValueError(
                f"ids must have the shape (tasks, m) with {support} tasks; got "
                f"{tuple(self.ids.shape)}. Add a dimension with unsqueeze(1) for one id per task."
            )

    def __len__(self) -> int:
        return next(named_tensors(self.support_x, ""))[1].shape[0]

    def __getitem__(self, index: int) -> Task[X, Y]:
        return Task(*(map_tensors(lambda t: t[index], getattr(self, name)) for name in _FIELDS))

    def __iter__(self) -> Iterator[Task[X, Y]]:
        return (self[i] for i in range(len(self)))

    def part(self, start: int, stop: int) -> TaskBatch[X, Y]:
        """The tasks `start` to `stop` (exclusive), as views."""
        return self.map(lambda t: t[start:stop])

    def to(self, device: torch.device | str) -> TaskBatch[X, Y]:
        """The same meta-batch on `device`."""
        return self.map(lambda t: t.to(device))

    def map(self, function: TensorFn) -> TaskBatch[X, Y]:
        """The meta-batch with `function` applied to each of its tensors."""
        parts = {name: map_tensors(function, getattr(self, name)) for name in _FIELDS}
        return TaskBatch(**parts, ids=None if self.ids is None else function(self.ids))


class RaggedTaskBatch:
    """A meta-batch of tasks that differ in their numbers of examples or classes, or input shapes.

    Learners run it by the loop engine. Outputs on the query sets,
    [`StepResult.query_output`][fastmeta.learners.StepResult] and those of
    [`predict`][fastmeta.learners.MetaLearner.predict], are lists with one tensor per task. Losses
    and meta-gradients are combined as for tasks of equal size: each task counts the same, whatever
    its number of examples.

    Args:
        tasks: the tasks, each with inputs and targets as in [`TaskBatch`][fastmeta.TaskBatch],
            but without the task dimension.

    Raises:
        ValueError: if inputs and targets of a task differ in their number, or a support or query
            set has no examples.
        TypeError: if inputs or targets are neither tensors nor mappings of names to tensors.
    """

    def __init__(self, tasks: Iterable[Task[Any, Any]]) -> None:
        self._tasks = tuple(Task(*map(_as_dict, task)) for task in tasks)
        for i, task in enumerate(self._tasks):
            for split in ("support", "query"):
                _check_sets(task, split, ("examples",), f"task {i}: ")

    @property
    def query_y(self) -> list[Examples]:
        """The query targets of each task."""
        return [task.query_y for task in self._tasks]

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int) -> Task[Any, Any]:
        return self._tasks[index]

    def __iter__(self) -> Iterator[Task[Any, Any]]:
        return iter(self._tasks)

    def part(self, start: int, stop: int) -> RaggedTaskBatch:
        """The tasks `start` to `stop` (exclusive)."""
        return RaggedTaskBatch(self._tasks[start:stop])

    def to(self, device: torch.device | str) -> RaggedTaskBatch:
        """The same meta-batch on `device`."""
        return self.map(lambda t: t.to(device))

    def map(self, function: TensorFn) -> RaggedTaskBatch:
        """The meta-batch with `function` applied to each of its tensors."""
        return RaggedTaskBatch(
            Task(*(map_tensors(function, part) for part in task)) for task in self._tasks
        )


MetaBatch: TypeAlias = TaskBatch[Any, Any] | RaggedTaskBatch


def concatenate(batches: Sequence[TaskBatch[Any, Any]]) -> TaskBatch[Any, Any]:
    """One meta-batch with the tasks of several, whose examples have the same shapes."""
    parts = {name: _joined([getattr(batch, name) for batch in batches]) for name in _FIELDS}
    ids = [batch.ids for batch in batches]
    return TaskBatch(**parts, ids=None if None in ids else _joined(ids))


def _joined(parts: Sequence[Examples]) -> Examples:
    if isinstance(parts[0], Mapping):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return None if parts[0] is None else torch.cat(list(parts))


def map_tensors(function: TensorFn, examples: Examples) -> Examples:
    """`function` of a tensor, or of each tensor of a mapping; `None` stays `None`."""
    if isinstance(examples, Mapping):
        return {name: function(tensor) for name, tensor in examples.items()}
    return None if examples is None else function(examples)


def named_tensors(examples: Examples, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of inputs or targets, with names for messages."""
    if isinstance(examples, Mapping):
        for key, tensor in examples.items():
            yield f"{name}[{key!r}]", tensor
    elif examples is not None:
        yield name, examples


def _as_dict(examples: Examples) -> Examples:
    return dict(examples) if isinstance(examples, Mapping) else examples


def _check_sets(owner: Any, split: str, dims: tuple[str, ...], prefix: str = "") -> tuple[int, ...]:
    """Checks inputs and targets of the support or query set; returns their leading dimensions."""
    x, y = getattr(owner, f"{split}_x"), getattr(owner, f"{split}_y")
    found = [*named_tensors(x, f"{split}_x"), *named_tensors(y, f"{split}_y")]
    for name, tensor in found:
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{prefix}{name} must be a tensor or a mapping of names to tensors, got "
                f"{type(tensor).__name__}."
            )
    if x is None or not any(True for _ in named_tensors(x, "")):
        raise ValueError(f"{prefix}{split}_x holds no tensor; expected at least one.")
    shapes = [tuple(tensor.shape) for _, tensor in found]
    first = shapes[0][: len(dims)]
    if len(first) < len(dims) or any(shape[: len(dims)] != first for shape in shapes):
        names = " and ".join(name for name, _ in found)
        begin = f"({', '.join(dims)})" if len(dims) > 1 else f"({dims[0]},)"
        hint = (
            " Add a leading task dimension with unsqueeze(0) for a single task."
            if len(dims) > 1
            else ""
        )
        raise ValueError(
            f"{prefix}{names} must {'both' if len(found) == 2 else 'all'} begin with {begin}; got "
            f"{' and '.join(map(str, shapes))}.{hint}"
        )
    if first[-1] == 0:
        raise ValueError(
            f"{prefix}{found[0][0]} must hold at least one example per task; got {shapes[0]}."
        )
    return first
