"""Cora and CiteSeer: papers that cite each other, as split by Yang et al., 2016 ("Planetoid")."""

from __future__ import annotations

from pathlib import Path

import torch

from fastmeta.data._io.folders import find_folder
from fastmeta.data.datasets._planetoid_files import SOURCE, read_planetoid
from fastmeta.data.id_datasets import Graph, NodeDataset
from fastmeta.data.splits import draw_split

# For 2-way tasks, as in the code of Tan et al. 2022 ("TLP"), which draws classes, too.
_CLASSES = {"cora": (3, 2, 2), "citeseer": (2, 2, 2)}


def load_planetoid(
    root: str | Path, split: str, *, name: str = "cora", split_seed: int = 0
) -> NodeDataset:
    """Loads a split of a citation graph.

    Cora has 2,708 nodes, 5,278 edges, 1,433 features and 7 classes, split 3/2/2 for train, val and
    test; CiteSeer 3,327, 4,552, 3,703 and 6, split 2/2/2. The split is of labels alone: networks
    see all nodes and edges in training, too ("transductive"). CiteSeer's 15 isolated test nodes
    without features have no label.

    Args:
        root: the folder of the files ``ind.NAME.*``, or the one that has it as ``planetoid/``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        name: ``"cora"`` or ``"citeseer"``.
        split_seed: which classes are in which split, ``0 <= split_seed < 2**64``.

    Returns:
        Nodes with class names ``"0"``, ``"1"``, ...: the files have no others. Features are 0 or 1,
        for the words of a paper.

    Raises:
        DataError: if a file is missing or broken, or they do not fit each other.
        ValueError: if ``name`` or ``split`` is unknown, or ``split_seed`` is out of range.
    """
    if name not in _CLASSES:
        raise ValueError(f"name must be one of {', '.join(_CLASSES)}; got {name!r}.")
    sizes = _CLASSES[name]
    folder = find_folder(root, "planetoid", [f"ind.{name}.graph"], SOURCE)
    features, edges, labels = read_planetoid(folder, name, sum(sizes))
    nodes = (labels >= 0).nonzero()[0]
    dataset = NodeDataset(
        torch.from_numpy(nodes),
        torch.from_numpy(labels[nodes]),
        [str(c) for c in range(sum(sizes))],
        Graph(torch.from_numpy(features), torch.from_numpy(edges)),
    )
    return dataset.subset(draw_split(split, sizes, split_seed))
