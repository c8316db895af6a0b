"""Data sets of classes, and the tasks drawn from them."""

from fastmeta.data.cifar import load_cifar_fs, load_fc100
from fastmeta.data.classes import ClassDataset, Normalization
from fastmeta.data.digits import load_digits
from fastmeta.data.errors import DataError
from fastmeta.data.jitter import Jitter
from fastmeta.data.mini_imagenet import load_mini_imagenet
from fastmeta.data.mnist import load_mnist
from fastmeta.data.omniglot import load_omniglot
from fastmeta.data.registry import DATASETS, datasets_in, load
from fastmeta.data.sampler import EpisodeSampler
from fastmeta.data.sine import SineTasks
from fastmeta.data.source import TaskSource
from fastmeta.data.transforms import add_inversion, add_rotations, multiply_classes

__all__ = [
    "DATASETS",
    "ClassDataset",
    "DataError",
    "EpisodeSampler",
    "Jitter",
    "Normalization",
    "SineTasks",
    "TaskSource",
    "add_inversion",
    "add_rotations",
    "datasets_in",
    "load",
    "load_cifar_fs",
    "load_digits",
    "load_fc100",
    "load_mini_imagenet",
    "load_mnist",
    "load_omniglot",
    "multiply_classes",
]
