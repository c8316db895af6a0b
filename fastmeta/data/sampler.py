"""Sampler of few-shot classification tasks (episodes)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmeta._checks import check_integer
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
        skip_small: whether to leave out classes with fewer than `shots + queries` examples;
            by default they are an error.
        steps_per_task: meta-batches in a row whose tasks have the same classes, with examples drawn
            anew, for methods that take several steps on a task.
        label_ids: `(classes, L)`, the token ids of a text for each class of the dataset, as of
            [`fastmeta.data.label_token_ids`][], for networks that read them. An input is then a
            mapping of `"ids"` to the example and `"labels"` to the texts `(ways, L)` of the
            classes of its task.

    Each meta-batch has `support_x` `(T, N*K, *input)` and `query_x` `(T, N*Q, *input)`,
    with `support_y` `(T, N*K)` and `query_y` `(T, N*Q)`, int64. An input is an image
    `(C, H, W)`, float32, or int64 ids: of the tokens of a text `(L,)`, or of a node `()`.

    Raises:
        TooFewError: a `ValueError`, if there are fewer than `ways` classes, or a class has fewer
            than `shots + queries` examples.
        ValueError: if a number is out of range.
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
        skip_small: bool = False,
        steps_per_task: int = 1,
        label_ids: Tensor | None = None,
    ) -> None:
        super().__init__(tasks=tasks, shots=shots, queries=queries, seed=seed, length=length)
        self._counts = np.array([len(i) for i in dataset.class_indices], dtype=np.int64)
        check_integer("ways", ways, 1)
        large = self._counts >= shots + queries
        if large.sum() < ways or not (skip_small or large.all()):
            raise TooFewError(self._counts, ways, shots, queries)
        self._classes = np.flatnonzero(large)
        self.dataset = dataset if device is None else dataset.to(device)
        self.ways = ways
        check_integer("steps_per_task", steps_per_task, 1)
        self.steps_per_task = steps_per_task
        if label_ids is not None and (label_ids.dim() != 2 or len(label_ids) != len(self._counts)):
            raise ValueError(
                f"label_ids must be (classes, L) for the {len(self._counts)} classes of the "
                f"dataset; got {tuple(label_ids.shape)}."
            )
        self.label_ids = None if label_ids is None else label_ids.to(self.dataset.device)
        self.jitter = jitter
        self._indices: NDArray[np.int64] = torch.cat(dataset.class_indices).numpy()
        self._starts = self._counts.cumsum() - self._counts

    def __repr__(self) -> str:
        return f"EpisodeSampler({self.dataset}, ways={self.ways}, {self._sizes()})"

    @property
    def left_out(self) -> list[str]:
        """The names of the classes that are left out as too small."""
        kept = {*self._classes.tolist()}
        return [name for c, name in enumerate(self.dataset.class_names) if c not in kept]

    def _draw(self, rng: TaskRNG) -> TaskBatch:
        examples = self.shots + self.queries
        populations = np.full(rng.tasks, len(self._classes), dtype=np.int64)
        # Also where the classes are those of an earlier meta-batch: the examples come after it.
        drawn = rng.sample(populations, self.ways)
        if self.steps_per_task > 1:
            drawn = rng.at(rng.index // self.steps_per_task).sample(populations, self.ways)
        ids = self._classes[drawn]
        classes = ids.reshape(-1)
        chosen = rng.sample(self._counts[classes], examples)
        indices = self._indices[self._starts[classes, None] + chosen]
        indices = indices.reshape(rng.tasks, self.ways, examples).swapaxes(1, 2)
        # One transfer for both sets, and the classes.
        sent = np.concatenate([ids, indices.reshape(rng.tasks, -1)], 1)
        received = torch.from_numpy(sent).to(self.dataset.device)
        inputs = self.dataset.inputs(received[:, self.ways :])
        if self.jitter:
            inputs = self.jitter.apply(inputs, rng)
        split = self.ways * self.shots
        parts: list[Any] = [inputs[:, :split], inputs[:, split:]]
        if self.label_ids is not None:
            labels = self.label_ids[received[:, : self.ways]].unsqueeze(1)
            sizes = (part.shape[1] for part in parts)
            texts = [labels.expand(-1, size, -1, -1) for size in sizes]
            parts = [{"ids": p, "labels": t} for p, t in zip(parts, texts, strict=True)]
        return TaskBatch(
            support_x=parts[0],
            support_y=self._labels(rng.tasks, self.shots),
            query_x=parts[1],
            query_y=self._labels(rng.tasks, self.queries),
            ids=received[:, : self.ways],
        )

    def _labels(self, tasks: int, examples: int) -> Tensor:
        return torch.arange(self.ways, device=self.dataset.device).repeat(tasks, examples)


class TooFewError(ValueError):
    """A dataset has too few classes that are large enough for the tasks asked for.

    Args:
        counts: examples of each class.
        ways: classes per task asked for.
        shots: support examples per class asked for.
        queries: query examples per class asked for.
    """

    def __init__(self, counts: NDArray[np.int64], ways: int, shots: int, queries: int) -> None:
        self._counts, self._asked = counts, (ways, shots, queries)
        super().__init__(self.explain())

    def explain(self, ways: str = "ways=", queries: str = "queries=") -> str:
        """What there is, what was asked for and what would fit.

        Args:
            ways: how the user sets the number of classes per task.
            queries: how the user sets the number of query examples per class.
        """
        n, shots, k = self._asked
        sizes = np.sort(self._counts)[::-1]
        large = int((sizes >= shots + k).sum())
        spread = f"{sizes[-1]}" if sizes[-1] == sizes[0] else f"{sizes[-1]} to {sizes[0]}"
        there = f"{len(sizes)} classes of {spread} examples"
        if 0 < large < len(sizes):
            there += f", {large} of them of at least {shots + k}"
        fits = []
        if len(sizes) >= n and sizes[n - 1] > shots:
            fits.append(f"{queries}{sizes[n - 1] - shots}")
        if large >= 2:
            fits.append(f"{ways}{large}")
        elif sizes[min(n, len(sizes)) - 1] > shots and 2 <= len(sizes) < n:
            fits.append(f"{ways}{len(sizes)} with {queries}{sizes[-1] - shots}")
        advice = f" What fits: {' or '.join(fits)}." if fits else ""
        return (
            f"{n} ways need {n} classes of at least {shots} + {k} = {shots + k} examples "
            f"(shots + queries); there are {there}.{advice} Or add examples, or classes."
        )
