"""Data sets of classes, and the tasks drawn from them."""

from fastmeta.data.cifar import load_cifar_fs, load_fc100
from fastmeta.data.classes import ClassDataset, Normalization
from fastmeta.data.dataset import EpisodeDataset
from fastmeta.data.digits import load_digits
from fastmeta.data.errors import DataError
from fastmeta.data.ids import Graph, NodeDataset, TextDataset
from fastmeta.data.intents import load_banking77, load_clinc150
from fastmeta.data.jitter import Jitter
from fastmeta.data.mini_imagenet import load_mini_imagenet
from fastmeta.data.mnist import load_mnist
from fastmeta.data.omniglot import load_omniglot
from fastmeta.data.planetoid import load_planetoid
from fastmeta.data.registry import DATASETS, NODES, TEXTS, datasets_in, load
from fastmeta.data.sampler import EpisodeSampler
from fastmeta.data.sine import SineTasks
from fastmeta.data.source import TaskSource
from fastmeta.data.tokens import token_ids
from fastmeta.data.transforms import add_inversion, add_rotations, multiply_classes

__all__ = [
    "DATASETS",
    "NODES",
    "TEXTS",
    "ClassDataset",
    "DataError",
    "EpisodeDataset",
    "EpisodeSampler",
    "Graph",
    "Jitter",
    "NodeDataset",
    "Normalization",
    "SineTasks",
    "TaskSource",
    "TextDataset",
    "add_inversion",
    "add_rotations",
    "datasets_in",
    "load",
    "load_banking77",
    "load_cifar_fs",
    "load_clinc150",
    "load_digits",
    "load_fc100",
    "load_mini_imagenet",
    "load_mnist",
    "load_omniglot",
    "load_planetoid",
    "multiply_classes",
    "token_ids",
]
