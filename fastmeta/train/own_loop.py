"""Checkpoints of training loops that are not the trainer's."""

from __future__ import annotations

import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmeta._checks import check_integer
from fastmeta.train._atomic_files import remove_temporary
from fastmeta.train._generators import set_torch_generators, torch_generators
from fastmeta.train.checkpoint import (
    OWN_LOOP,
    checkpoints,
    load_latest,
    prune,
    save_checkpoint,
    step_path,
)

_PLAIN = (int, float, bool, str, type(None))


class Checkpoints:
    """Checkpoints of a loop of your own, from which it continues with the same bits.

    Files and guarantees are those of `fastmeta train`: a checkpoint is written atomically, with a
    checksum, and a process that is killed at any time leaves the ones before intact. Besides what
    you save it holds the states of torch's, NumPy's and Python's global generators.

    ```python
    checkpoints = Checkpoints("run")
    done, saved = checkpoints.load()
    if saved is not None:
        weights.data.copy_(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
    for step in range(done, 100):
        ...
        checkpoints.save(step + 1, {"weights": weights, "optimizer": optimizer.state_dict()})
    ```

    Args:
        folder: of the checkpoints; created with the first one.
        keep: number of newest ones that are kept.

    Raises:
        ValueError: if `keep` is below 1.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        check_integer("keep", keep, 1)
        self.folder = Path(folder)
        self.keep = keep

    def save(self, step: int, state: Any) -> None:
        """Writes a checkpoint, and removes the oldest ones.

        Args:
            step: number of steps taken.
            state: what the loop needs to continue: tensors, numbers, strings, `None`, and lists,
                tuples and dicts of these, such as `state_dict()` of modules and optimizers.

        Raises:
            ValueError: if `step` is negative, or `state` holds something else.
            StorageError: if it cannot be written.
        """
        check_integer("step", step, 0)
        _check(state, "state")
        content = {"step": step, "state": state, "generators": _generators()}
        save_checkpoint(step_path(self.folder, step), content, OWN_LOOP)
        prune(self.folder, self.keep)

    def load(self) -> tuple[int, Any]:
        """The newest checkpoint; the generators are as when it was written.

        Damaged checkpoints are skipped with a warning and renamed.

        Returns:
            Number of steps taken and the state, with tensors on the CPU; 0 and `None` if there is
            no checkpoint.

        Raises:
            CheckpointError: if there are others there, such as those of `fastmeta train`, or all
                are damaged.
        """
        if not checkpoints(self.folder):
            return 0, None
        remove_temporary(self.folder)
        _, content = load_latest(self.folder, OWN_LOOP)
        _set_generators(content["generators"])
        return content["step"], content["state"]


def _generators() -> dict[str, Any]:
    kind, keys, position, cached, value = np.random.get_state(legacy=True)
    numpy = [kind, torch.tensor(np.asarray(keys, dtype=np.int64)), position, cached, value]
    return {"torch": torch_generators(), "python": random.getstate(), "numpy": numpy}


def _set_generators(state: dict[str, Any]) -> None:
    set_torch_generators(state["torch"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))


def _check(value: Any, where: str) -> None:
    """Rejects what `load_checkpoint` would refuse, which runs no code."""
    if type(value) in (Tensor, nn.Parameter, *_PLAIN):
        return
    if type(value) in (list, tuple):
        for i, part in enumerate(value):
            _check(part, f"{where}[{i}]")
    elif type(value) in (dict, OrderedDict):
        for key, part in value.items():
            _check(key, f"the key {key!r} of {where}")
            _check(part, f"{where}[{key!r}]")
    else:
        raise ValueError(
            f"{where} is {type(value).__name__}; expected tensors, numbers, strings, None, and "
            "lists, tuples and dicts of these, such as state_dict() of it."
        )
