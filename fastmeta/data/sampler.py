"""Few-shot classification episodes, drawn from a class data set."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmeta.data._rng import Draws
from fastmeta.data.augmentation import Jitter
from fastmeta.data.dataset import EpisodeDataset
from fastmeta.data.task_source import SeededSource
from fastmeta.tasks import TaskBatch


class EpisodeSampler(SeededSource):
    """Meta-batches of ``ways``-way ``shots``-shot tasks (Vinyals et al., 2016).

    Each task has ``ways`` distinct classes in random order, labelled ``0..ways-1``, and of each
    class ``shots`` support and ``queries`` query examples, all distinct. Both sets are interleaved:
    example ``j`` has the label ``j % ways``, so that any first ``k * ways`` examples are a
    balanced ``k``-shot set and ``x.unflatten(1, (-1, ways))`` splits by class.

    ``sampler[i]`` is a pure function of ``(seed, i)``: see :class:`SeededSource`. Indices are
    drawn on the CPU, so tasks do not depend on the device; examples are gathered where they are, so
    a data set on a GPU gives meta-batches on it. Worker processes need it on the CPU.

    Args:
        dataset: the classes and their examples: images, texts or nodes of a graph.
        ways: classes a task, ``N``.
        shots: support examples a class, ``K``.
        queries: query examples a class, ``Q``.
        tasks: tasks a meta-batch, ``T``.
        seed: ``0 <= seed < 2**64``.
        length: how many meta-batches there are, or ``None`` for no end.
        device: where to put the data set, or ``None`` to leave it where it is.
        jitter: how to move each image at random, for training; not at all by default.

    Each meta-batch holds ``support_x`` ``(T, N*K, *input)`` and ``query_x`` ``(T, N*Q, *input)``,
    with ``support_y`` ``(T, N*K)`` and ``query_y`` ``(T, N*Q)``, int64. An input is an image
    ``(C, H, W)``, float32, the ids of a text ``(L,)``, or that of a node ``()``, int64.

    Raises:
        ValueError: if there are fewer than ``ways`` classes, if a class has fewer than
            ``shots + queries`` examples, or if a number is out of range.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        ways: int,
        shots: int,
        queries: int,
        tasks: int,
        seed: int = 0,
        length: int | None = None,
        device: torch.device | str | None = None,
        jitter: Jitter | None = None,
    ) -> None:
        super().__init__(tasks=tasks, shots=shots, queries=queries, seed=seed, length=length)
        self._counts = np.array([len(rows) for rows in dataset.class_indices], dtype=np.int64)
        _check_enough(dataset, self._counts, ways, shots, queries)
        self.dataset = dataset if device is None else dataset.to(device)
        self.ways = ways
        self.jitter = jitter
        self._rows: NDArray[np.int64] = torch.cat(dataset.class_indices).numpy()
        self._starts = self._counts.cumsum() - self._counts

    def _draw(self, draws: Draws) -> TaskBatch:
        examples = self.shots + self.queries
        populations = np.full(draws.tasks, self.dataset.num_classes, dtype=np.int64)
        classes = draws.distinct(populations, self.ways).reshape(-1)
        picks = draws.distinct(self._counts[classes], examples)
        rows = self._rows[self._starts[classes, None] + picks]
        rows = rows.reshape(draws.tasks, self.ways, examples).swapaxes(1, 2)
        # One transfer for both sets.
        index = torch.from_numpy(rows.reshape(draws.tasks, -1)).to(self.dataset.device)
        inputs = self.dataset.inputs(index)
        if self.jitter:
            inputs = self.jitter.apply(inputs, draws)
        border = self.ways * self.shots
        return TaskBatch(
            support_x=inputs[:, :border],
            support_y=self._labels(draws.tasks, self.shots),
            query_x=inputs[:, border:],
            query_y=self._labels(draws.tasks, self.queries),
        )

    def _labels(self, tasks: int, examples: int) -> Tensor:
        return torch.arange(self.ways, device=self.dataset.device).repeat(tasks, examples)


def _check_enough(
    dataset: EpisodeDataset, counts: NDArray[np.int64], ways: int, shots: int, queries: int
) -> None:
    if not 1 <= ways <= dataset.num_classes:
        raise ValueError(
            f"ways must be at least 1 and at most the number of classes, {dataset.num_classes}; "
            f"got {ways}. Ask for fewer ways, or make more classes: with rotations or inversion, "
            "or by another split."
        )
    smallest = int(counts.argmin())
    if shots + queries > counts[smallest]:
        raise ValueError(
            f"shots + queries = {shots} + {queries} = {shots + queries} examples a class were "
            f"asked for, but the smallest class, {dataset.class_names[smallest]!r}, has "
            f"{counts[smallest]}. Ask for fewer queries, or leave this class out."
        )
