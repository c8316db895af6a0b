"""Datasets, samplers and loaders for few-shot tasks."""

from fastmeta.data._io.errors import DataError
from fastmeta.data._io.tokens import token_ids
from fastmeta.data.augmentation import Jitter
from fastmeta.data.class_transforms import add_inversion, add_rotations, multiply_classes
from fastmeta.data.dataset import EpisodeDataset
from fastmeta.data.datasets.cifar import load_cifar_fs, load_fc100
from fastmeta.data.datasets.digits import load_digits
from fastmeta.data.datasets.features import load_features
from fastmeta.data.datasets.folder import load_folder
from fastmeta.data.datasets.glyphs import load_glyphs
from fastmeta.data.datasets.intents import load_banking77, load_clinc150
from fastmeta.data.datasets.mini_imagenet import load_mini_imagenet
from fastmeta.data.datasets.mnist import load_mnist
from fastmeta.data.datasets.omniglot import load_omniglot
from fastmeta.data.datasets.own_texts import load_csv
from fastmeta.data.datasets.planetoid import load_planetoid
from fastmeta.data.datasets.registry import (
    DATASETS,
    DatasetSpec,
    class_splits,
    datasets_in,
    load,
)
from fastmeta.data.feature_dataset import FeatureDataset
from fastmeta.data.id_datasets import Graph, NodeDataset, TextDataset
from fastmeta.data.image_dataset import ClassDataset, Normalization
from fastmeta.data.image_regression import ImageRegression
from fastmeta.data.label_texts import label_token_ids
from fastmeta.data.prioritized import FeedbackSource, PrioritizedTasks
from fastmeta.data.sampler import EpisodeSampler, TooFewError
from fastmeta.data.sine import SineTasks
from fastmeta.data.task_source import TaskSource

__all__ = [
    "DATASETS",
    "ClassDataset",
    "DataError",
    "DatasetSpec",
    "EpisodeDataset",
    "EpisodeSampler",
    "FeatureDataset",
    "FeedbackSource",
    "Graph",
    "ImageRegression",
    "Jitter",
    "NodeDataset",
    "Normalization",
    "PrioritizedTasks",
    "SineTasks",
    "TaskSource",
    "TextDataset",
    "TooFewError",
    "add_inversion",
    "add_rotations",
    "class_splits",
    "datasets_in",
    "label_token_ids",
    "load",
    "load_banking77",
    "load_cifar_fs",
    "load_clinc150",
    "load_csv",
    "load_digits",
    "load_fc100",
    "load_features",
    "load_folder",
    "load_glyphs",
    "load_mini_imagenet",
    "load_mnist",
    "load_omniglot",
    "load_planetoid",
    "multiply_classes",
    "token_ids",
]
