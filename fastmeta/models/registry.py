"""Backbones by name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastmeta.models.conv4 import Conv4, Downsample
from fastmeta.models.conv_co_learner import conv_co_learner
from fastmeta.models.gcn import GCN
from fastmeta.models.mlp import MLP
from fastmeta.models.resnet12 import ResNet12
from fastmeta.models.siren import SIREN
from fastmeta.models.text import LabelTextEncoder, TextEncoder
from fastmeta.registry import Registry


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """What the tasks and the configuration of a run ask of a backbone, which uses what it needs.

    Attributes:
        input_shape: of one example.
        ways: outputs, one per class; of a regression as many as a target has numbers.
        hidden: filters or widths.
        dataset: what the tasks are drawn from, which has a vocabulary or a graph; `None` if
            unknown.
        downsample: see [`Conv4`][fastmeta.models.Conv4].
        batch_norm_stats: see [`Conv4`][fastmeta.models.Conv4].
        batch_norm_steps: see [`Conv4`][fastmeta.models.Conv4]; `None` if each block has one
            BatchNorm.
        pool_last: see [`Conv4`][fastmeta.models.Conv4].
        warp: whether there are [warp layers][fastmeta.models.warp_conv].
    """

    input_shape: torch.Size
    ways: int
    hidden: tuple[int, ...]
    dataset: Any = None
    downsample: Downsample = "pool"
    batch_norm_stats: bool = False
    batch_norm_steps: int | None = None
    pool_last: bool = True
    warp: bool = False


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """What is known about a backbone.

    Attributes:
        network: its class.
        arguments: from the options to the arguments of the class; raises `ValueError` if it does
            not fit them.
        kinds: the kinds of datasets it fits, see [`fastmeta.data.DatasetSpec`][].
        hidden_counts: how many numbers it takes as `hidden`; any by default.
        hidden_label: these counts in an error message.
        label_texts: whether it reads the texts of the labels beside the examples.
        co_learner: from a network, its outputs and whether BatchNorm keeps statistics to the name
            of the submodule whose output a co-learner takes, and the co-learner's freshly
            initialised head; `None` if there is none.
        warps: whether it can have warp layers.
    """

    network: Callable[..., nn.Module]
    arguments: Callable[[NetworkOptions], dict[str, Any]]
    kinds: Collection[str]
    hidden_counts: tuple[int, ...] | None = None
    hidden_label: str = ""
    label_texts: bool = False
    co_learner: Callable[[Any, int, bool], tuple[str, nn.Module]] | None = None
    warps: bool = False


def _conv4(options: NetworkOptions) -> dict[str, Any]:
    steps = options.batch_norm_steps
    return {
        **_images("Conv4", options),
        "hidden": options.hidden[0],
        "downsample": options.downsample,
        **({} if steps is None else {"batch_norm_steps": steps}),
        **({"warp": True} if options.warp else {}),
    }


def _resnet12(options: NetworkOptions) -> dict[str, Any]:
    first, *more = options.hidden
    hidden = options.hidden if more else tuple(first << block for block in range(4))
    return {**_images("ResNet12", options), "hidden": hidden}


def _images(network: str, options: NetworkOptions) -> dict[str, Any]:
    shape = options.input_shape
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ValueError(f"{network} needs square images; got inputs {tuple(shape)}.")
    return {
        "in_channels": shape[0],
        "image_size": shape[1],
        "ways": options.ways,
        "batch_norm_stats": options.batch_norm_stats,
        "pool_last": options.pool_last,
    }


def _mlp(options: NetworkOptions) -> dict[str, Any]:
    sizes = {"in_features": options.input_shape.numel(), "out_features": options.ways}
    return {**sizes, "hidden": options.hidden, **({"warp": True} if options.warp else {})}


def _text(options: NetworkOptions) -> dict[str, Any]:
    return {**_label_text(options), "ways": options.ways}


def _label_text(options: NetworkOptions) -> dict[str, Any]:
    vocabulary = getattr(options.dataset, "vocabulary", None)
    if vocabulary is None:
        raise ValueError("an encoder of texts needs tasks drawn from a TextDataset.")
    return {"vocabulary": vocabulary, "hidden": options.hidden[0]}


def _gcn(options: NetworkOptions) -> dict[str, Any]:
    graph = getattr(options.dataset, "graph", None)
    if graph is None:
        raise ValueError("GCN needs tasks drawn from a NodeDataset.")
    nodes = {"features": graph.features, "edges": graph.edges}
    return {**nodes, "ways": options.ways, "hidden": options.hidden}


def _beside_images(
    network: Conv4 | ResNet12, ways: int, batch_norm_stats: bool
) -> tuple[str, nn.Module]:
    head = conv_co_learner(*network.map_size, ways, batch_norm_stats=batch_norm_stats)
    return "features", head


def _beside_mlp(network: MLP, ways: int, _stats: bool) -> tuple[str, nn.Module]:
    last = network.layers[-1]
    assert isinstance(last, nn.Linear)
    *_, (site, _), _ = network.layers.named_children()  # the output of the last hidden layer
    return f"layers.{site}", MLP(last.in_features, ways, (last.in_features,))


def _beside_text(network: TextEncoder, ways: int, _stats: bool) -> tuple[str, nn.Module]:
    width = network.head.in_features
    return "norm", MLP(width, ways, (width,))


def _beside_gcn(network: GCN, ways: int, _stats: bool) -> tuple[str, nn.Module]:
    width = network.head.in_features
    site = f"convolutions.{len(network.convolutions) - 1}"
    return site, nn.Sequential(nn.ReLU(), MLP(width, ways, (width,)))


BACKBONES: Registry[BackboneSpec] = Registry(
    "backbone",
    {
        "conv4": BackboneSpec(
            network=Conv4,
            arguments=_conv4,
            kinds=("images",),
            hidden_counts=(1,),
            hidden_label="one number of filters",
            co_learner=_beside_images,
            warps=True,
        ),
        "mlp": BackboneSpec(
            network=MLP,
            arguments=_mlp,
            kinds=("images", "features", "regression", "signals"),
            co_learner=_beside_mlp,
            warps=True,
        ),
        "resnet12": BackboneSpec(
            network=ResNet12,
            arguments=_resnet12,
            kinds=("images",),
            hidden_counts=(1, 4),
            hidden_label="one or four numbers",
            co_learner=_beside_images,
        ),
        "siren": BackboneSpec(network=SIREN, arguments=_mlp, kinds=("regression", "signals")),
        "text": BackboneSpec(
            network=TextEncoder,
            arguments=_text,
            kinds=("texts",),
            hidden_counts=(1,),
            hidden_label="one width",
            co_learner=_beside_text,
        ),
        "label-text": BackboneSpec(
            network=LabelTextEncoder,
            arguments=_label_text,
            kinds=("texts",),
            hidden_counts=(1,),
            hidden_label="one width",
            label_texts=True,
        ),
        "gcn": BackboneSpec(network=GCN, arguments=_gcn, kinds=("nodes",), co_learner=_beside_gcn),
    },
    expected=BackboneSpec,
)
"""The backbones by name."""
