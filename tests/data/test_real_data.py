from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastmeta.data import ClassDataset, EpisodeSampler, load


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def decode_once(cache_folder: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMETA_CACHE", str(shared_cache))


def omniglot(real_data: Path, split: str, **options: object) -> ClassDataset:
    if not (real_data / "omniglot").is_dir():
        pytest.skip("FASTMETA_DATA has no omniglot/")
    return load("omniglot", split, real_data, **options)


def test_omniglot_is_whole(real_data: Path) -> None:
    train = omniglot(real_data, "train", rotations=False)
    val, test = omniglot(real_data, "val"), omniglot(real_data, "test")
    assert (train.num_classes, val.num_classes, test.num_classes) == (864, 100, 659)
    assert not set(train.class_names) & set(val.class_names)
    for dataset in (train, val, test):
        assert {len(rows) for rows in dataset.class_indices} == {20}
        assert dataset.images.shape == (20 * dataset.num_classes, 1, 28, 28)
        assert 0.05 < dataset.images.float().mean() / 255 < 0.12  # ink on paper, not inverted
    alphabets = [{name.partition("/")[0] for name in d.class_names} for d in (train, val, test)]
    assert len(alphabets[0] | alphabets[1]) == 30
    assert len(alphabets[2]) == 20
    assert not alphabets[2] & (alphabets[0] | alphabets[1])


def test_omniglot_train_turns(real_data: Path) -> None:
    assert omniglot(real_data, "train").num_classes == 4 * 864


def test_omniglot_vinyals_split(real_data: Path) -> None:
    if not (real_data / "splits" / "omniglot-vinyals").is_dir():
        pytest.skip("FASTMETA_DATA has no splits/omniglot-vinyals/")
    names = [
        set(omniglot(real_data, split, protocol="vinyals", rotations=False).class_names)
        for split in ("train", "val", "test")
    ]
    assert [len(part) for part in names] == [1028, 172, 423]
    assert len(set.union(*names)) == 1623


def test_episodes_of_one_character_look_alike(real_data: Path) -> None:
    batch = EpisodeSampler(omniglot(real_data, "test"), 5, 5, 10, tasks=40)[0]
    prototypes = batch.support_x.flatten(2).unflatten(1, (5, 5)).mean(1)
    distances = torch.cdist(batch.query_x.flatten(2), prototypes)
    accuracy = (distances.argmin(-1) == batch.query_y).float().mean()
    assert accuracy > 0.4  # chance is 0.2: labels and images belong together


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize(
    ("split", "classes", "total"), [("train", 7, 60_000), ("val", 1, 60_000), ("test", 2, 10_000)]
)
def test_mnist_shapes(real_data: Path, name: str, split: str, classes: int, total: int) -> None:
    if not (real_data / name).is_dir():
        pytest.skip(f"FASTMETA_DATA has no {name}/")
    dataset = load(name, split, real_data, rotations=False, inversion=False)
    assert dataset.num_classes == classes
    assert dataset.images.shape[1:] == (1, 28, 28)
    assert abs(len(dataset) - total * classes / 10) < 0.02 * total
    assert dataset.images[:, :, 0, 0].float().mean() < 10  # the background is dark
