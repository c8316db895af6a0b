"""Fuzzes the data loaders: corrupt and malicious files give a dataset or a clear error.

``python -m tests.stress.fuzz_loaders --minutes 8`` takes a small valid dataset of every kind,
corrupts one of its files (changed bytes, large numbers, truncated, extended, removed, the content
of another file, zip slips, zip and gzip bombs, pickles that run code, deep nesting) and loads it.
The result must be a dataset, the same one where a checksum protects the file, or a ``DataError``
that names the folder. No loader may run code, write outside its cache, exhaust memory, or loop
forever.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import warnings
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from fastmeta.data import DataError
from tests.stress import fuzzing
from tests.stress.sample_files import SAMPLES, Files, malicious

CHECKSUMS = (".gz", "images.zip")  # in omniglot.zip, labels are file names
_RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "ctypes.dlopen")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod")


class Watch:
    """Records what this process does while a dataset is loaded, from Python's audit events."""

    def __init__(self, work: Path) -> None:
        self.work = str(work)
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        outside = not str(args[0] if args else "").startswith(self.work)
        socket = event.startswith("socket.")
        if event in _RUNS or socket or ((writes or event in _CHANGES) and outside):
            self.seen.append(f"{event} {args}")


@cache
def workplace() -> tuple[Path, Watch]:
    """The working folder of this process."""
    folder = tempfile.TemporaryDirectory()
    workplace.kept = folder  # type: ignore[attr-defined]
    work = Path(folder.name).resolve()
    os.environ["FASTMETA_CACHE"] = str(work / "cache")
    os.chdir(work)
    return work, Watch(work)


@cache
def valid_sample(name: str) -> tuple[Path, Files, str]:
    """The folder of a valid dataset, its files, and the dataset."""
    np.random.seed(0)
    root = workplace()[0] / "data"
    files = SAMPLES[name].files()
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root, files, essence(SAMPLES[name].load(root))


def essence(value: Any) -> str:
    """A hash of all tensors and names of a dataset."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            digest.update(f"{part.shape} {part.dtype}".encode() + part.numpy().tobytes())
        elif hasattr(part, "__dict__"):
            for inner in vars(part).values():
                add(inner)
        elif isinstance(part, tuple | list):
            for inner in part:
                add(inner)
        else:
            digest.update(repr(part).encode())

    add(value)
    return digest.hexdigest()


def corrupt(data: st.DataObject, files: Files, path: str) -> tuple[str, bytes | None]:
    """New content for a file, or ``None``, and the kind of change."""
    draw, old = data.draw, files[path]
    place = st.integers(0, len(old) - 1) | st.integers(0, min(300, len(old) - 1))
    place |= st.integers(max(0, len(old) - 300), len(old) - 1)
    kind = draw(
        st.sampled_from(["bytes", "bytes", "large", "cut", "longer", "gone", "other", "malicious"])
    )
    new = bytearray(old)
    if kind == "bytes":
        for _ in range(draw(st.integers(1, 6))):
            new[draw(place)] = draw(st.integers(0, 255))
    elif kind == "large":
        start = draw(place)
        number = draw(st.sampled_from([b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff"]))
        new[start : start + 4] = number
    elif kind == "cut":
        del new[draw(place) :]
    elif kind == "longer":
        start = draw(place)
        new[start:start] = draw(st.binary(min_size=1, max_size=40))
    elif kind == "gone":
        return kind, None
    elif kind == "other":
        new = bytearray(files[draw(st.sampled_from(sorted(files)))])
    else:
        inside = next((p for p in files if p != path), "train")
        member = {"images.zip": "images/n00_0.png"}.get(path, inside)
        member = {"images_background.zip": "images_background/A/b/c.png"}.get(path, member)
        contents = malicious(Path(path).suffix, member)
        new = bytearray(contents[draw(st.integers(0, len(contents) - 1))])
    return kind, bytes(new)


def check(name: str, data: st.DataObject) -> str:
    work, watch = workplace()
    root, files, expected = valid_sample(name)
    path = data.draw(st.sampled_from(sorted(files)))
    kind, content = corrupt(data, files, path)
    (root / path).unlink()
    if content is not None:
        (root / path).write_bytes(content)
    before = sorted(work.rglob("*"))
    try:
        watch.on = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = essence(SAMPLES[name].load(root))
    except DataError as error:
        message = str(error)
        assert str(root) in message, f"does not say where: {message}"
        assert len(message) < 2000, f"says too much: {len(message)} characters"
        return "refused"
    else:
        if kind == "bytes" and path.endswith(CHECKSUMS):
            assert found == expected, "corruption went undetected"
    finally:
        watch.on = False
        (root / path).write_bytes(files[path])
        assert sorted({*work.rglob("*")} - {*before, root / path}) == [], "left files"
        assert not watch.seen, watch.seen
    return "the same" if found == expected else "another"


def describe(counts: Counter[str], targets: list[str]) -> str:
    return (
        f"{counts.total()} corrupted datasets of {len(targets)} kinds: "
        f"{counts['refused']} refused, {counts['the same']} the same, {counts['another']} others "
        "without a checksum; no code run, no file written, no memory exhausted"
    )


if __name__ == "__main__":
    checks = {name: partial(check, name) for name in SAMPLES}
    fuzzing.main("fuzz_loaders", __doc__, checks, describe)
