"""Checkpoints are whole or not there, and say what is wrong with them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from fastmeta.train import CheckpointError
from fastmeta.train.checkpoint import (
    checkpoints,
    find_best,
    find_latest,
    load_checkpoint,
    prune,
    save_checkpoint,
    step_path,
)
from fastmeta.train.files import write_atomic, write_json


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.pt"
    content = {"x": torch.randn(3), "deep": [{"n": 1, "none": None, "text": "t"}]}
    save_checkpoint(path, content)
    found = load_checkpoint(path)
    assert torch.equal(found["x"], content["x"])
    assert found["deep"] == content["deep"]


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"n": 1})

    def crash(file) -> None:
        file.write(b"half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_atomic(path, crash)
    assert load_checkpoint(path)["n"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


class Malicious:
    def __reduce__(self):
        return Path("owned").touch, ()


def bad_files() -> dict[str, bytes]:
    return {
        "empty": b"",
        "text": b"not a checkpoint",
        "code": pickle.dumps(Malicious(), protocol=2),
        "half a zip": b"PK\x03\x04 and no more",
    }


@pytest.mark.parametrize("kind", bad_files())
def test_corrupt_files_are_named_and_run_no_code(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(bad_files()[kind])
    with pytest.raises(CheckpointError, match=r"a\.pt: expected a checkpoint"):
        load_checkpoint(path)
    assert not Path("owned").exists()


def test_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"x": torch.randn(10_000)})
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="truncated, corrupt or foreign"):
        load_checkpoint(path)


def test_files_of_torch_that_are_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="another file of torch"):
        load_checkpoint(path)
    torch.save({"format": "fastmeta-checkpoint", "version": 99}, path)
    with pytest.raises(CheckpointError, match="version 1; found 99"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "b.pt")


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100_000_000, 15, 20):
        save_checkpoint(step_path(tmp_path, step), {"step": step})
    (tmp_path / "best.pt").touch()
    prune(tmp_path, 2)
    assert [load_checkpoint(p)["step"] for p in checkpoints(tmp_path)] == [20, 100_000_000]
    assert (tmp_path / "best.pt").exists()


def test_what_to_resume_and_what_to_test(tmp_path: Path) -> None:
    for step in (5, 10):
        save_checkpoint(step_path(tmp_path, step), {"step": step})
    assert find_latest(tmp_path) == step_path(tmp_path, 10)
    assert find_latest(step_path(tmp_path, 10)) == step_path(tmp_path, 10)
    with pytest.raises(CheckpointError, match="a later checkpoint"):
        find_latest(step_path(tmp_path, 5))
    assert find_best(tmp_path) == step_path(tmp_path, 10)
    save_checkpoint(tmp_path / "best.pt", {})
    assert find_best(tmp_path) == tmp_path / "best.pt"
    with pytest.raises(CheckpointError, match="numbered checkpoint"):
        find_latest(tmp_path / "best.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"found no step-\*\.pt"):
        find_latest(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        find_latest(tmp_path / "step-00000099.pt")


def test_json_refuses_what_it_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []
