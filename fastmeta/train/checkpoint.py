"""Checkpoints: written whole, read safely, the last few kept."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from fastmeta.train.errors import CheckpointError
from fastmeta.train.files import write_atomic

FORMAT = "fastmeta-checkpoint"
VERSION = 1
BEST = "best.pt"

_NAME = re.compile(r"step-(\d{8,})\.pt")


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint atomically.

    Args:
        path: of the file.
        content: tensors, numbers, texts, ``None``, and lists, tuples and dicts of these.
    """
    whole = {"format": FORMAT, "version": VERSION, **content}
    write_atomic(path, lambda file: torch.save(whole, file))


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint without running any code it may hold (``weights_only=True``).

    Args:
        path: of the file.
        device: where to put tensors.

    Raises:
        CheckpointError: if the file is missing, truncated, corrupt, not a checkpoint of fastmeta,
            or from a newer version.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint.") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path}: expected a checkpoint of fastmeta; found a truncated, corrupt or foreign "
            "file. Use an older checkpoint of the run, or best.pt."
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: expected a checkpoint of fastmeta; found another file of torch. Weights "
            "alone cannot be resumed: use torch.load and module.load_state_dict."
        )
    if content["version"] != VERSION:
        raise CheckpointError(
            f"{path}: expected checkpoint version {VERSION}; found {content['version']}. "
            "Use the version of fastmeta that wrote it."
        )
    return content


def step_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}.pt"


def checkpoints(folder: Path) -> list[Path]:
    """The numbered checkpoints of a run, oldest first."""
    found = [(int(m[1]), p) for p in folder.glob("step-*.pt") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def prune(folder: Path, keep: int) -> None:
    """Removes all but the last ``keep`` numbered checkpoints."""
    for path in checkpoints(folder)[:-keep]:
        path.unlink(missing_ok=True)


def find_latest(path: Path) -> Path:
    """The checkpoint to resume: ``path`` itself, or the newest of the run folder ``path``.

    Raises:
        CheckpointError: if there is none, or ``path`` is not the newest of its run. (Later steps
            would be mixed with those of the resumed run.)
    """
    folder = path if path.is_dir() else path.parent
    found = checkpoints(folder)
    if path.is_dir():
        if not found:
            raise CheckpointError(f"{path}: expected a run folder; found no step-*.pt in it.")
        return found[-1]
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint.")
    if path not in found:
        raise CheckpointError(
            f"{path}: expected a numbered checkpoint such as {step_path(Path(), 500)}. "
            f"Resume the run with its folder, {folder}."
        )
    if path != found[-1]:
        raise CheckpointError(
            f"{path}: the run has a later checkpoint, {found[-1].name}. Resume with the folder, "
            "or remove the later ones to go back."
        )
    return path


def find_best(path: Path) -> Path:
    """The checkpoint to evaluate: ``path`` itself, or the best of the run folder ``path``.

    Raises:
        CheckpointError: if there is none.
    """
    if path.is_file():
        return path
    if (path / BEST).is_file():
        return path / BEST
    return find_latest(path)
