"""Cora and CiteSeer citation graphs, in the version of Yang et al., 2016 ("Planetoid")."""

from __future__ import annotations

from pathlib import Path

import torch

from fastmeta.data._io.folders import find_folder
from fastmeta.data.datasets._planetoid_files import SOURCE, read_planetoid
from fastmeta.data.id_datasets import Graph, NodeDataset
from fastmeta.data.splits import draw_split

# For 2-way tasks, as in the code of Tan et al. 2022 ("TLP"), which also draws the classes.
_CLASSES = {"cora": (3, 2, 2), "citeseer": (2, 2, 2)}


def load_planetoid(
    root: str | Path, split: str, *, name: str = "cora", split_seed: int = 0
) -> NodeDataset:
    """Loads a split of a citation graph.

    Cora has 2,708 nodes, 5,278 edges, 1,433 features and 7 classes, split 3/2/2 into train, val and
    test; CiteSeer 3,327, 4,552, 3,703 and 6, split 2/2/2. Only the labels are split: networks see
    all nodes and edges in training, too ("transductive"). CiteSeer's 15 isolated test nodes without
    features have no label.

    Args:
        root: the folder of the files `ind.NAME.*`, or a folder with the subfolder
            `planetoid/`.
        split: `"train"`, `"val"` or `"test"`.
        name: `"cora"` or `"citeseer"`.
        split_seed: seed of the split of classes, `0 <= split_seed < 2**64`.

    Returns:
        Nodes with class names `"0"`, `"1"`, ...: the files have no other names. Features are 0
        or 1, the absence or presence of words in a paper.

    Raises:
        DataError: if files are missing, corrupt or inconsistent.
        ValueError: if `name` or `split` is unknown, or `split_seed` is out of range.
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
