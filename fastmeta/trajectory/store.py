"""Where the states of a run are kept: in place, in the host's memory, or in files."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

Tensors = Sequence[Tensor | None]


class Store(AbstractContextManager["Store"]):
    """Keeps lists of tensors, the same bits, until they are dropped or the context ends.

    Args:
        offload: `None`: as they are; `"cpu"`: in the host's memory; else a folder, in which a
            temporary folder is made: files.

    Raises:
        ValueError: if the folder does not exist.
    """

    def __init__(self, offload: str | os.PathLike[str] | None = None) -> None:
        self._offload = offload
        self._count = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if offload is None or offload == "cpu":
            return
        if not Path(offload).is_dir():
            raise ValueError(
                f"offload must be None, 'cpu' or an existing folder; got {os.fspath(offload)!r}."
            )
        self._folder = tempfile.TemporaryDirectory(prefix="fastmeta-", dir=offload)

    @override
    def __exit__(self, *error: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def keep(self, tensors: Tensors) -> Callable[[], list[Tensor | None]]:
        """A function that returns the tensors; while it exists, they are kept."""
        if self._folder is not None:
            self._count += 1
            return _File(Path(self._folder.name) / str(self._count), tensors)
        own = list(tensors)
        if self._offload is None or all(t is None or t.device.type == "cpu" for t in own):
            return lambda: own
        devices = [None if t is None else t.device for t in own]
        host = [None if t is None else t.to("cpu") for t in own]
        return lambda: [
            None if t is None else t.to(device) for t, device in zip(host, devices, strict=True)
        ]


class _File:
    """Tensors in a file, which is deleted with this object."""

    def __init__(self, path: Path, tensors: Tensors) -> None:
        self._path = path
        self._devices = [None if t is None else t.device for t in tensors]
        # A view would bring all of its storage along.
        torch.save([None if t is None else t.detach().to("cpu").clone() for t in tensors], path)
        weakref.finalize(self, path.unlink, missing_ok=True)

    def __call__(self) -> list[Tensor | None]:
        loaded = torch.load(self._path)
        pairs = zip(loaded, self._devices, strict=True)
        return [None if t is None else t.to(device) for t, device in pairs]
