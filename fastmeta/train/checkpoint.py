"""Checkpoints: atomic writes with a checksum, safe loading, pruning."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from fastmeta.train._atomic_files import reporting_os_errors, write_atomic
from fastmeta.train.errors import CheckpointError, DamagedError

FORMAT = "fastmeta-checkpoint"
OWN_LOOP = "fastmeta-own-loop"  # of `fastmeta.train.Checkpoints`
VERSION = 3  # of the content, whose parts an older or newer version may name otherwise
BEST = "best.pt"
MARK = b"fastmeta-sha256:"  # before the digest at the end of the file

_DIGEST = hashlib.sha256().digest_size
_SEAL = len(MARK) + _DIGEST

_WRITERS = {FORMAT: "fastmeta train", OWN_LOOP: "fastmeta.train.Checkpoints"}

_NAME = re.compile(r"step-(\d{8,})\.pt")


def save_checkpoint(path: Path, content: dict[str, Any], form: str = FORMAT) -> None:
    """Writes a checkpoint atomically: a file of `torch.save` and, at its end, its SHA-256.

    Args:
        path: of the file.
        content: tensors, numbers, strings, `None`, and lists, tuples and dicts of these.
        form: what kind of checkpoint it is.

    Raises:
        StorageError: if it cannot be written; an existing file is unchanged.
    """
    file = io.BytesIO()
    torch.save({"format": form, "version": VERSION, **content}, file)
    data = file.getvalue()
    seal = MARK + hashlib.sha256(data).digest()
    write_atomic(path, lambda file: file.writelines([data, seal]))


def load_checkpoint(
    path: Path, device: torch.device | str = "cpu", form: str = FORMAT
) -> dict[str, Any]:
    """Loads a checkpoint without running any code it may contain (`weights_only=True`).

    Args:
        path: of the file.
        device: where to put tensors.
        form: what kind of checkpoint is expected.

    Raises:
        DamagedError: if the file differs from what was written, or is not a file of torch.
        CheckpointError: if it is missing, cannot be read, is not a checkpoint of fastmeta, or is
            of another version.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint.") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    sealed = data[-_SEAL:-_DIGEST] == MARK
    if sealed and hashlib.sha256(data[:-_SEAL]).digest() != data[-_DIGEST:]:
        raise _damaged(path)
    try:
        content = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except Exception as error:  # torch may raise anything for a damaged file
        if sealed:
            raise CheckpointError(f"{path}: torch cannot load it: {error}") from error
        raise _damaged(path) from error
    content = content if isinstance(content, dict) else {}
    found = content.get("format")
    if found != form and found in (FORMAT, OWN_LOOP):
        raise CheckpointError(
            f"{path}: expected a checkpoint of {_WRITERS[form]}; found one of {_WRITERS[found]}."
        )
    if found != form:
        raise CheckpointError(
            f"{path}: expected a checkpoint of fastmeta; found another file of torch. A run cannot "
            "be resumed from weights alone: load those with torch.load and module.load_state_dict."
        )
    if content["version"] != VERSION:
        raise CheckpointError(
            f"{path}: expected checkpoint version {VERSION}; found {content['version']}. Use the "
            "version of fastmeta that wrote it."
        )
    if not sealed:
        raise _damaged(path)
    return content


def _damaged(path: Path) -> DamagedError:
    return DamagedError(
        f"{path}: expected a checkpoint of fastmeta; found a truncated, corrupt or foreign file. "
        "Use another one: resume the run from its folder, which finds the newest intact one."
    )


def step_path(folder: Path, step: int) -> Path:
    """The path of the checkpoint of a step."""
    return folder / f"step-{step:08d}.pt"


def checkpoints(folder: Path) -> list[Path]:
    """The numbered checkpoints of a run, oldest first."""
    found = [(int(m[1]), p) for p in folder.glob("step-*.pt") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def prune(folder: Path, keep: int) -> None:
    """Removes all but the last `keep` numbered checkpoints."""
    for path in checkpoints(folder)[:-keep]:
        path.unlink(missing_ok=True)


def find_latest(path: Path) -> Path:
    """The checkpoint to resume: `path` itself, or the newest of the run folder `path`.

    Raises:
        CheckpointError: if there is none, or `path` is not the newest of its run (later steps
            would be mixed with those of the resumed run).
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
            f"Resume the run from its folder, {folder}."
        )
    if path != found[-1]:
        raise CheckpointError(
            f"{path}: the run has a later checkpoint, {found[-1].name}. Resume from the folder, "
            "or remove the later ones to go back."
        )
    return path


def load_latest(path: Path, form: str = FORMAT) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to resume: its path and its content.

    Args:
        path: the newest checkpoint of a run, or the run's folder. In a folder, damaged checkpoints
            are skipped with a warning and renamed to `step-*.pt.damaged`. Nothing is lost: the
            steps that are repeated are the same steps.
        form: what kind of checkpoint is expected.

    Raises:
        CheckpointError: as `find_latest` and `load_checkpoint`.
    """
    newest = find_latest(path)
    if path == newest:
        return path, load_checkpoint(path, form=form)
    damaged: list[Path] = []
    for candidate in reversed(checkpoints(path)):
        try:
            content = load_checkpoint(candidate, form=form)
        except DamagedError:
            damaged.append(candidate)
            continue
        for old in damaged:
            _set_aside(old, candidate)
        return candidate, content
    raise DamagedError(
        f"{path}: all checkpoints of the run are damaged ({', '.join(p.name for p in damaged)}). "
        "Start it again in another folder; if best.pt is intact, evaluate still works."
    )


def _set_aside(damaged: Path, instead: Path) -> None:
    aside = damaged.with_name(f"{damaged.name}.damaged")
    with reporting_os_errors(aside):
        damaged.replace(aside)
    warnings.warn(
        f"{damaged} is damaged and was renamed to {aside.name}; the run continues from "
        f"{instead.name}.",
        RuntimeWarning,
        stacklevel=4,
    )


def find_best(path: Path) -> Path:
    """The checkpoint to evaluate: `path` itself, or the best of the run folder `path`.

    Raises:
        CheckpointError: if there is none.
    """
    if path.is_file():
        return path
    if (path / BEST).is_file():
        return path / BEST
    return find_latest(path)
