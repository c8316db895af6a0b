"""Sampler of few-shot classification tasks (episodes)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmeta.data._rng import TaskRNG
from fastmeta.data.augmentation import Jitter
from fastmeta.data.dataset import EpisodeDataset
from fastmeta.data.task_source import SeededSource
from fastmeta.tasks import TaskBatch


class EpisodeSampler(SeededSource):
    """Meta-batches of `ways`-way `shots`-shot tasks (Vinyals et al., 2016).

    Each task has `ways` distinct classes in random order, labelled `0..ways-1`, and `shots`
    support and `queries` query examples per class, all distinct. Both sets are interleaved:
    example `j` has label `j % ways`, so that the first `k * ways` examples are a balanced
    `k`-shot set for any `k`, and `x.unflatten(1, (-1, ways))` splits by class.

    `sampler[i]` is a pure function of `(seed, i)`: see
    [`SeededSource`][fastmeta.data.task_source.SeededSource]. Indices are drawn on the CPU, so tasks
    do not depend on the device; examples are gathered on the device of the dataset, so a dataset on
    a GPU yields meta-batches there. Worker processes need it on the CPU.

    Args:
        dataset: the dataset: images, texts or nodes of a graph.
        ways: classes per task, `N`.
        shots: support examples per class, `K`.
        queries: query examples per class, `Q`.
        tasks: tasks per meta-batch, `T`.
        seed: `0 <= seed < 2**64`.
        length: number of meta-batches, or `None` for an infinite source.
        device: device to move the dataset to, or `None` to leave it where it is.
        jitter: augmentation of training images; none by default.

    Each meta-batch has `support_x` `(T, N*K, *input)` and `query_x` `(T, N*Q, *input)`,
    with `support_y` `(T, N*K)` and `query_y` `(T, N*Q)`, int64. An input is an image
    `(C, H, W)`, float32, or int64 ids: of the tokens of a text `(L,)`, or of a node `()`.

    Raises:
        ValueError: if there are fewer than `ways` classes, if a class has fewer than
            `shots + queries` examples, or if a number is out of range.
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
        self._counts = np.array([len(i) for i in dataset.class_indices], dtype=np.int64)
        _check_enough(dataset, self._counts, ways, shots, queries)
        self.dataset = dataset if device is None else dataset.to(device)
        self.ways = ways
        self.jitter = jitter
        self._indices: NDArray[np.int64] = torch.cat(dataset.class_indices).numpy()
        self._starts = self._counts.cumsum() - self._counts

    def _draw(self, rng: TaskRNG) -> TaskBatch:
        examples = self.shots + self.queries
        populations = np.full(rng.tasks, self.dataset.num_classes, dtype=np.int64)
        classes = rng.sample(populations, self.ways).reshape(-1)
        chosen = rng.sample(self._counts[classes], examples)
        indices = self._indices[self._starts[classes, None] + chosen]
        indices = indices.reshape(rng.tasks, self.ways, examples).swapaxes(1, 2)
        # One transfer for both sets.
        index = torch.from_numpy(indices.reshape(rng.tasks, -1)).to(self.dataset.device)
        inputs = self.dataset.inputs(index)
        if self.jitter:
            inputs = self.jitter.apply(inputs, rng)
        split = self.ways * self.shots
        return TaskBatch(
            support_x=inputs[:, :split],
            support_y=self._labels(rng.tasks, self.shots),
            query_x=inputs[:, split:],
            query_y=self._labels(rng.tasks, self.queries),
        )

    def _labels(self, tasks: int, examples: int) -> Tensor:
        return torch.arange(self.ways, device=self.dataset.device).repeat(tasks, examples)


def _check_enough(
    dataset: EpisodeDataset, counts: NDArray[np.int64], ways: int, shots: int, queries: int
) -> None:
    if not 1 <= ways <= dataset.num_classes:
        raise ValueError(
            f"ways must be at least 1 and at most the number of classes, {dataset.num_classes}; "
            f"got {ways}. Use fewer ways, or more classes: with rotations or inversion, "
            "or another split."
        )
    smallest = int(counts.argmin())
    if shots + queries > counts[smallest]:
        raise ValueError(
            f"shots + queries must be at most the size of the smallest class; got {shots} + "
            f"{queries} = {shots + queries} examples per class, but the smallest class, "
            f"{dataset.class_names[smallest]!r}, has {counts[smallest]}. Use fewer queries, or "
            "leave this class out."
        )
