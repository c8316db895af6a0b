"""Synthetic files of text and graph datasets."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path

import numpy as np

from fastmeta.data.datasets._planetoid_files import Citations
from tests.helpers.python2_pickles import dumps, lists, sparse

CLINC150 = {"train": 100, "val": 20, "test": 30}  # texts of each intent
BANKING77 = {"train": 10_003, "test": 3_080}


def intents() -> dict[str, list[str]]:
    return {f"domain{d}": [f"intent{d}_{i}" for i in range(15)] for d in range(10)}


@cache
def _clinc150_texts() -> str:
    names = [name for part in intents().values() for name in part]
    content = {
        part: [[f"{name} as {part} says {k}", name] for name in names for k in range(count)]
        for part, count in CLINC150.items()
    }
    return json.dumps({**content, "oos_test": [["what is the meaning of life", "oos"]]})


def write_clinc150(root: Path) -> Path:
    folder = root / "clinc150"
    folder.mkdir(parents=True)
    (folder / "data_full.json").write_text(_clinc150_texts())
    (folder / "domains.json").write_text(json.dumps(intents()))
    return folder


def write_banking77(root: Path) -> Path:
    folder = root / "banking77"
    folder.mkdir(parents=True)
    for part, count in BANKING77.items():
        with (folder / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "category"])
            writer.writerows([f'Row {k},\n "{part}"', f"intent{k % 77:02}"] for k in range(count))
    return folder


def write_planetoid(
    root: Path, name: str, classes: int, each: int = 30, words: int = 12
) -> Citations:
    """A graph of ``each`` nodes per class, the last third of it for test.

    The last but one of all nodes is isolated and has neither features nor a label. Nodes of a class
    share words and neighbours.
    """
    folder = root / "planetoid"
    folder.mkdir(parents=True, exist_ok=True)
    nodes = classes * each
    labels = np.random.permutation(np.arange(nodes) % classes)
    likely = np.where(np.arange(words) % classes == labels[:, None], 0.8, 0.1)
    features = (np.random.rand(nodes, words) < likely).astype(np.float32)
    near = labels[:, None] == labels
    edges = np.argwhere(np.triu(np.random.rand(nodes, nodes) < np.where(near, 0.1, 0.01), 1)).T
    alone = nodes - 2
    features[alone], labels[alone] = 0, -1
    edges = edges[:, (edges != alone).all(0)]

    graph: dict[int, list[int]] = {node: [] for node in range(nodes)}
    for i, j in edges.T.tolist():
        graph[i] += [j, j]  # as in the files: both ways, some twice, some loops
        graph[j] += [i]
    graph[0].append(0)
    first = 2 * nodes // 3
    test = np.random.permutation([node for node in range(first, nodes) if node != alone])
    one_hot = np.eye(classes, dtype=np.int32)
    for suffix, content in {
        "allx": sparse(features[:first]),
        "ally": one_hot[labels[:first]],
        "tx": sparse(features[test]),
        "ty": one_hot[labels[test]],
        "graph": lists(graph),
    }.items():
        (folder / f"ind.{name}.{suffix}").write_bytes(dumps(content))
    (folder / f"ind.{name}.test.index").write_text("".join(f"{node}\n" for node in test))
    return Citations(features, edges, labels)
