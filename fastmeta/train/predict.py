"""Predictions of a trained run for a user's own examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmeta.data import ClassDataset, DataError, token_ids
from fastmeta.data._io.class_folders import decode_images, find_images, images_below, to_grey
from fastmeta.data.datasets.own_texts import SUFFIXES, read_column, read_texts
from fastmeta.evaluation.scores import evaluation_mode
from fastmeta.tasks import Task
from fastmeta.train._atomic_files import write_atomic
from fastmeta.train.errors import ConfigError, require
from fastmeta.train.export import SUFFIX, Exported, inputs_of, load_export
from fastmeta.train.plots import show_image
from fastmeta.train.progress import Progress
from fastmeta.train.saved import load_run

_CHUNK = 256  # inputs that are classified together
_SHOWN = 24  # in the picture
_COLUMNS = 6


@dataclass(frozen=True, repr=False, eq=False)
class Prediction:
    """Classes that an adapted learner assigns to inputs.

    Attributes:
        classes: names of the classes of the labelled examples.
        names: of the inputs, paths of images or texts.
        probabilities: `(inputs, classes)`, softmax of the outputs.
        examples: number of labelled examples of each class.
        images: of the examples and the inputs as the network sees them; `None` for texts.
    """

    classes: Sequence[str]
    names: Sequence[str]
    probabilities: Tensor
    examples: Sequence[int]
    images: tuple[Tensor, Tensor] | None = None

    @property
    def predicted(self) -> list[str]:
        """The most probable class of each input."""
        return [self.classes[c] for c in self.probabilities.argmax(1).tolist()]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        rows = zip(self.names, self.predicted, self.probabilities.tolist(), strict=True)
        return {
            "classes": list(self.classes),
            "examples": list(self.examples),
            "inputs": [{"name": n, "class": c, "probabilities": p} for n, c, p in rows],
        }

    def __repr__(self) -> str:
        return f"Prediction({len(self.names)} inputs, classes {', '.join(self.classes)})"

    def __str__(self) -> str:
        width = max(map(len, self.names))
        best = self.probabilities.max(1).values.tolist()
        rows = zip(self.names, self.predicted, best, strict=True)
        return "\n".join(f"{name:<{width}}  {found}  {100 * p:.0f} %" for name, found, p in rows)

    def draw(self, path: Path) -> None:
        """Writes a picture of the examples and the first inputs, as PNG.

        Raises:
            ValueError: if the inputs are texts.
        """
        from matplotlib.figure import Figure

        if self.images is None:
            raise ValueError("only predictions for images can be drawn.")
        support, inputs = self.images
        firsts = np.cumsum([0, *self.examples[:-1]]).tolist()
        above, below = -(-len(self.classes) // _COLUMNS), -(-min(len(inputs), _SHOWN) // _COLUMNS)
        figure = Figure(figsize=(1.5 * _COLUMNS, 1.7 * (above + below) + 0.8), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(above, below))
        best = self.probabilities.max(1).values.tolist()
        titles = [f"{c}, {100 * p:.0f} %" for c, p in zip(self.predicted, best, strict=True)]
        panels = (
            ("Labelled examples", above, support[firsts], self.classes),
            ("Predictions", below, inputs[:_SHOWN], titles),
        )
        for part, (title, rows, images, captions) in zip(parts, panels, strict=True):
            part.suptitle(title)
            cells = part.subplots(rows, _COLUMNS, squeeze=False).flatten()
            for cell in cells:
                cell.axis("off")
            for cell, image, caption in zip(cells, images, captions, strict=False):
                cell.axis("on")
                show_image(cell, image, "#333333", caption)
        png = BytesIO()
        figure.savefig(png, format="png", dpi=130)
        write_atomic(path, lambda file: file.write(png.getvalue()))


def predict_run(
    path: str | Path,
    examples: str | Path,
    inputs: Sequence[str | Path],
    changes: Mapping[str, Any] | None = None,
) -> Prediction:
    """Adapts the best learner of a run to labelled examples and classifies other inputs.

    Images are prepared as in the run; up to 256 of them and the examples pass through the network
    together, and BatchNorm takes its statistics from all of these.

    Args:
        path: the run's folder or a checkpoint, whose data are loaded again, or an exported file,
            which needs no data; trained on images or texts.
        examples: a folder with a folder of images per class, or a CSV file of texts and labels.
        inputs: images or folders of images; or CSV files of texts, or text files of one per line.
        changes: options that differ from the run's, such as `eval_inner_steps`.

    Raises:
        CheckpointError: if there is no usable checkpoint.
        ConfigError: if files cannot be read, or the run does not fit the number of classes.
        MissingPackageError: if Pillow is needed and missing.
    """
    trained = _trained(Path(path), changes or {})
    paths = [Path(name).expanduser() for name in inputs]
    try:
        if trained.inputs.kind == "images":
            require("PIL", "Decoding images", package="pillow")
            return _of_images(trained, Path(examples).expanduser(), paths)
        if trained.inputs.kind == "texts":
            return _of_texts(trained, Path(examples).expanduser(), paths)
    except DataError as error:
        raise ConfigError(str(error)) from error
    raise ConfigError(
        f"{path}: expected a run on images or texts; it was trained on dataset "
        f"{trained.config.dataset!r}."
    )


def _trained(path: Path, changes: Mapping[str, Any]) -> Exported:
    if path.suffix == SUFFIX:
        return load_export(path, changes)
    run = load_run(path, changes)
    inputs = inputs_of(run.sources["test"])
    return Exported(config=run.config, device=run.device, learner=run.learner, inputs=inputs)


def _of_images(trained: Exported, examples: Path, inputs: Sequence[Path]) -> Prediction:
    channels, side = trained.inputs.shape[:2]
    classes = find_images(examples)
    _check_ways(trained, classes, examples)
    files = [file for path in inputs for file in images_below(path)]

    def read(paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
        pixels = decode_images(paths, side)
        images = torch.from_numpy(to_grey(pixels) if channels == 1 else pixels)
        labels = torch.zeros(len(paths), dtype=torch.int64)
        shown = ClassDataset(images, labels, [""], trained.inputs.normalization)
        return images, shown.to(trained.device).inputs(torch.arange(len(paths)))

    support, support_x = read([file for found in classes.values() for file in found])
    queries, query_x = read(files)
    counts = [len(found) for found in classes.values()]
    found = _classify(trained, support_x, counts, query_x)
    return Prediction([*classes], [str(file) for file in files], found, counts, (support, queries))


def _of_texts(trained: Exported, examples: Path, inputs: Sequence[Path]) -> Prediction:
    columns = {
        f"{name}_column": trained.config.data_options.get(f"{name}_column", name)
        for name in ("text", "label")
    }
    classes = read_texts(examples, **columns)
    _check_ways(trained, classes, examples)
    texts = [
        text
        for path in inputs
        for text in (
            read_column(path, columns["text_column"])
            if path.suffix.lower() in SUFFIXES
            else _lines(path)
        )
    ]
    if not texts:
        raise ConfigError(f"{', '.join(map(str, inputs))}: expected texts to classify; found none.")
    vocabulary, (length,) = trained.inputs.vocabulary, trained.inputs.shape
    assert vocabulary is not None

    def ids(rows: Sequence[str]) -> Tensor:
        return torch.from_numpy(token_ids(rows, vocabulary, length)).to(trained.device)

    counts = [len(found) for found in classes.values()]
    support_x = ids([text for found in classes.values() for text in found])
    return Prediction([*classes], texts, _classify(trained, support_x, counts, ids(texts)), counts)


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error


def _check_ways(trained: Exported, classes: Mapping[str, Any], where: Path) -> None:
    ways = trained.config.ways
    if not 2 <= len(classes) <= ways:
        raise ConfigError(
            f"{where}: expected examples of 2 to {ways} classes, the ways of the run; found "
            f"{len(classes)}. Leave out classes, or train a run with --ways {len(classes)}."
        )


def _classify(
    trained: Exported, support_x: Tensor, counts: Sequence[int], query_x: Tensor
) -> Tensor:
    """The probabilities `(n, classes)` of the inputs `query_x`."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(trained.device)
    config, parts = trained.config, []
    with (
        evaluation_mode(trained.learner.module),
        Progress("predictions", len(query_x), unit="input") as progress,
    ):
        for chunk in query_x.split(_CHUNK):
            # With the examples: BatchNorm needs more than a single image.
            together = torch.cat([support_x, chunk])
            task = Task(support_x, labels, together, labels.new_zeros(len(together)))
            outputs = trained.learner.predict(task, config.eval_inner_steps, config.co_test)
            parts.append(outputs[len(support_x) :, : len(counts)])
            progress.advance(len(chunk))
    return torch.cat(parts).softmax(1).cpu()
