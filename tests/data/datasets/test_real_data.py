from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F

from fastmeta.data import (
    ClassDataset,
    EpisodeSampler,
    TextDataset,
    datasets_in,
    load,
    load_banking77,
    load_clinc150,
    load_planetoid,
)
from fastmeta.data.datasets._cifar_splits import read_classes

Dataset = TypeVar("Dataset")

GRAPHS = [("cora", 2708, 5278, 1433), ("citeseer", 3327, 4552, 3703)]


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


def test_omniglot_is_complete(real_data: Path) -> None:
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


def test_omniglot_training_set_is_rotated(real_data: Path) -> None:
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


def mini_imagenet(real_data: Path, split: str) -> ClassDataset:
    if not (real_data / "mini-imagenet" / f"{split}.csv").is_file():
        pytest.skip(f"FASTMETA_DATA has no mini-imagenet/{split}.csv")
    return load("mini-imagenet", split, real_data, complete=False)


def test_mini_imagenet_splits_share_no_class(real_data: Path) -> None:
    # Not train: decoding it takes too long for a test.
    datasets = [mini_imagenet(real_data, split) for split in ("val", "test")]
    assert [dataset.num_classes for dataset in datasets] == [16, 20]
    assert not set(datasets[0].class_names) & set(datasets[1].class_names)
    for dataset in datasets:
        assert len({len(rows) for rows in dataset.class_indices}) == 1
        assert dataset.images.shape == (len(dataset), 3, 84, 84)
        red, green, blue = dataset.images.float().mean((0, 2, 3))
        assert 90 < blue < green < red < 140  # ImageNet's means are 104, 116 and 124


def test_mini_imagenet_pickles_are_its_images(real_data: Path) -> None:
    folder = real_data / "mini-imagenet" / "pickle-sample"
    if not folder.is_dir():
        pytest.skip("FASTMETA_DATA has no mini-imagenet/pickle-sample/")
    listed = mini_imagenet(real_data, "test")
    pickled = load("mini-imagenet", "test", folder, complete=False)
    assert pickled.num_classes == 5
    for name, rows in zip(pickled.class_names, pickled.class_indices, strict=True):
        same = listed.images[listed.class_indices[list(listed.class_names).index(name)]]
        known = {image.numpy().tobytes() for image in same}
        assert all(image.numpy().tobytes() in known for image in pickled.images[rows])


def at_hand(real_data: Path, folder: str, load: Callable[..., Dataset]) -> Callable[..., Dataset]:
    if not (real_data / folder).is_dir():
        pytest.skip(f"FASTMETA_DATA has no {folder}/")
    return partial(load, real_data)


@pytest.mark.parametrize(("name", "nodes", "edges", "words"), GRAPHS)
def test_citation_graphs_are_complete(
    real_data: Path, name: str, nodes: int, edges: int, words: int
) -> None:
    load = at_hand(real_data, "planetoid", partial(load_planetoid, name=name))
    parts = [load(split) for split in ("train", "val", "test")]
    graph = parts[0].graph
    assert graph.features.shape == (nodes, words)
    assert graph.edges.shape == (2, edges)
    assert graph.features.unique().tolist() == [0, 1]
    labelled = torch.cat([part.ids for part in parts])
    assert labelled.unique().numel() == len(labelled)
    alone = set(range(nodes)) - set(labelled.tolist())
    assert len(alone) == (15 if name == "citeseer" else 0)
    assert not graph.features[sorted(alone)].any()
    labels = torch.full((nodes,), -1)
    for part in parts:
        labels[part.ids] = torch.tensor([int(name) for name in part.class_names])[part.labels]
    one, other = labels[graph.edges]
    assert (one == other).float().mean() > 0.7  # papers cite their own topic: labels belong


@pytest.mark.parametrize(
    ("folder", "load", "texts"),
    [("clinc150", load_clinc150, 22_500), ("banking77", load_banking77, 13_083)],
)
def test_intents_are_complete(
    real_data: Path, folder: str, load: Callable[..., TextDataset], texts: int
) -> None:
    read = at_hand(real_data, folder, load)
    parts = [read(split) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == texts
    assert all((part.ids[:, 0] > 0).all() for part in parts)  # no text is empty
    batch = EpisodeSampler(parts[2], 5, 1, 10, tasks=100)[0]
    bags = [
        torch.zeros(*x.shape[:-1], 4096, dtype=torch.float64).scatter_add_(
            -1, x, torch.ones(()).double().expand(x.shape)
        )[..., 1:]
        for x in (batch.support_x, batch.query_x)
    ]
    support, query = (F.normalize(bag, dim=-1) for bag in bags)
    found = (query @ support.mT).argmax(-1)
    assert (found == batch.query_y).float().mean() > 0.4  # chance is 0.2: texts and labels belong


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


def test_modified_mnist_has_20_ways(real_data: Path) -> None:
    if not (real_data / "mnist").is_dir():
        pytest.skip("FASTMETA_DATA has no mnist/")
    options = {"val_classes": (2, 5, 9), "test_classes": (3, 4, 7), "examples_per_class": 20}
    for split in ("train", "val", "test"):
        batch = EpisodeSampler(load("mnist", split, real_data, **options), 20, 5, 15, tasks=1)[0]
        assert batch.query_x.shape == (1, 300, 1, 28, 28)


CIFAR_SIZES = {"cifar-fs": (64, 16, 20), "fc100": (60, 20, 20)}
SPLITS = ("train", "val", "test")


@pytest.mark.parametrize("name", CIFAR_SIZES)
def test_cifar_splits_share_no_class(real_data: Path, name: str) -> None:
    if name not in datasets_in(real_data):
        pytest.skip("FASTMETA_DATA has no cifar-100-python/ and no archive of it")
    names = [load(name, split, real_data).class_names for split in SPLITS]
    assert tuple(map(len, names)) == CIFAR_SIZES[name]
    assert len(set().union(*names)) == 100


@pytest.mark.parametrize("name", CIFAR_SIZES)
def test_lists_of_cifar_share_no_class(real_data: Path, tmp_path: Path, name: str) -> None:
    lists = real_data / "splits"
    if not (lists / name).is_dir() or not (lists / "cifar-fs").is_dir():
        pytest.skip(f"FASTMETA_DATA has no splits/cifar-fs/ or no splits/{name}/")
    pairs = [
        pair
        for split in SPLITS
        for pair in json.loads((lists / "cifar-fs" / f"{split}.json").read_text())
    ]
    names = ["/".join(pair) for pair in pairs]
    ids = [read_classes(lists / name, split, names) for split in SPLITS]
    assert tuple(map(len, ids)) == CIFAR_SIZES[name]
    assert len(set().union(*ids)) == 100
    for split, found in zip(SPLITS, ids, strict=True):
        texts = lists / name / f"{split}.txt"
        if texts.is_file():
            shutil.copy(texts, tmp_path)
            assert set(read_classes(tmp_path, split, names)) == set(found)
