"""A full disk or an unwritable folder: a clear error, and nothing is lost."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastmeta.cli import main
from fastmeta.train import ConfigError, StorageError, configure, resume, sources, train
from fastmeta.train import trainer as trainer_module
from fastmeta.train._atomic_files import remove_temporary, write_atomic
from fastmeta.train.checkpoint import checkpoints, load_checkpoint


@contextmanager
def largest_file(size: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limits the size of files from meta-step 7 on."""
    step = trainer_module.Trainer._train_step
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def run_short(self: Any) -> None:
        step(self)
        if self.step == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size(), before[1]))

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "_train_step", run_short)
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["best.pt", "step-00000010.pt", "log.csv"])
def test_a_full_disk(sine: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sine["val_every"] = 4 if name == "best.pt" else 12
    whole = train(configure({**sine, "out": "whole"}))

    def size() -> int:
        return 4096 if name.endswith(".pt") else Path("run/log.csv").stat().st_size + 5

    match = rf"{name}: cannot be written \(File too large\).*--resume"
    with largest_file(size, monkeypatch), pytest.raises(StorageError, match=match):
        train(configure(sine))
    found = checkpoints(Path("run"))
    assert [load_checkpoint(path)["step"] for path in found] == [5]
    assert not list(Path("run").glob(".*.tmp"))
    results = resume("run", {})
    assert (results["test"], results["val"]) == (whole["test"], whole["val"])


def test_the_command_line_takes_one_line(capsys: pytest.CaptureFixture) -> None:
    Path("run").touch()
    assert main(["train", "--dataset", "sine", "--out", "run", "--no-plots"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("fastmeta: run")
    assert "cannot be written" in errors
    assert errors.count("\n") == 1


def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    write_atomic(path, lambda file: file.write(b"old"))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"a\.pt: cannot be written \(No space left on device\)"):
        write_atomic(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.pt"]


def test_temporary_files_of_killed_processes_are_removed(sine: dict[str, Any]) -> None:
    train(configure({**sine, "steps": 6}))
    left = Path("run/.step-00000009.pt.0123.tmp")
    left.write_bytes(b"half")
    resume("run", {"steps": 8})
    assert not left.exists()
    remove_temporary(Path("nowhere"))


def test_unreadable_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "images.zip")

    monkeypatch.setattr(sources, "load", denied)
    match = r"dataset 'digits', split 'train': .*Permission denied: 'images\.zip'"
    with pytest.raises(ConfigError, match=match):
        train(configure({"dataset": "digits", "out": "run"}))
    assert not Path("run").exists()
