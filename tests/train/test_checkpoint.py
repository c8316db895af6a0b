"""Checkpoints are written atomically and verified when read."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from fastmeta.train import CheckpointError, DamagedError
from fastmeta.train._atomic_files import write_atomic, write_json
from fastmeta.train.checkpoint import (
    VERSION,
    checkpoints,
    find_best,
    find_latest,
    load_checkpoint,
    load_latest,
    prune,
    save_checkpoint,
    step_path,
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.pt"
    content = {"x": torch.randn(3), "deep": [{"n": 1, "none": None, "text": "t"}]}
    save_checkpoint(path, content)
    found = load_checkpoint(path)
    assert torch.equal(found["x"], content["x"])
    assert found["deep"] == content["deep"]


def test_a_crash_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
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


def test_every_corrupt_byte_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"x": torch.randn(50), "n": 1, "text": "t"})
    whole = path.read_bytes()
    places = {*torch.randint(len(whole), (150,)).tolist(), *range(len(whole) - 48, len(whole))}
    for place in places:
        flipped = whole[place] ^ (1 << int(torch.randint(8, ())))
        path.write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
        with pytest.raises(DamagedError, match="truncated, corrupt or foreign"):
            load_checkpoint(path)
    for length in [*torch.randint(len(whole), (20,)).tolist(), len(whole) - 1, len(whole) - 48]:
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError):
            load_checkpoint(path)
    path.write_bytes(whole)
    assert load_checkpoint(path)["n"] == 1
    assert torch.load(path, weights_only=True)["n"] == 1  # torch itself reads it, too


def test_a_checkpoint_without_a_checksum_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"format": "fastmeta-checkpoint", "version": VERSION, "n": 3}, path)
    with pytest.raises(DamagedError):
        load_checkpoint(path)


def test_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read \(Is a directory\)"):
        load_checkpoint(tmp_path)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_corrupt_checkpoints_are_skipped_and_set_aside(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_checkpoint(step_path(tmp_path, step), {"step": step})
    damage(step_path(tmp_path, 15))
    with pytest.raises(DamagedError, match=r"step-00000015\.pt: .*resume the run from its folder"):
        load_latest(step_path(tmp_path, 15))
    damage(step_path(tmp_path, 10))
    with pytest.warns(RuntimeWarning) as caught:
        path, content = load_latest(tmp_path)
    assert (path, content["step"]) == (step_path(tmp_path, 5), 5)
    told = sorted(str(each.message).removeprefix(f"{tmp_path}/") for each in caught)
    assert [text.split(" is damaged")[0] for text in told] == [
        "step-00000010.pt",
        "step-00000015.pt",
    ]
    assert all("continues from step-00000005.pt" in text for text in told)
    assert sorted(p.name for p in tmp_path.glob("*.damaged")) == [
        "step-00000010.pt.damaged",
        "step-00000015.pt.damaged",
    ]
    assert load_latest(tmp_path)[0] == step_path(tmp_path, 5)


def test_if_all_are_corrupt_none_is_moved(tmp_path: Path) -> None:
    for step in (5, 10):
        save_checkpoint(step_path(tmp_path, step), {"step": step})
        damage(step_path(tmp_path, step))
    with pytest.raises(DamagedError, match="all checkpoints of the run are damaged"):
        load_latest(tmp_path)
    assert len(checkpoints(tmp_path)) == 2


def test_other_torch_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="another file of torch"):
        load_checkpoint(path)
    for version in (VERSION - 1, VERSION + 1):
        torch.save({"format": "fastmeta-checkpoint", "version": version}, path)
        with pytest.raises(CheckpointError, match=f"version {VERSION}; found {version}"):
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


def test_checkpoints_to_resume_and_to_evaluate(tmp_path: Path) -> None:
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


def test_json_refuses_unsupported_values(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []
