"""Tasks from any classification data set."""

from fastmeta.compat.learn2learn.data import transforms
from fastmeta.compat.learn2learn.data.description import DataDescription
from fastmeta.compat.learn2learn.data.meta_dataset import (
    FilteredMetaDataset,
    MetaDataset,
    UnionMetaDataset,
)
from fastmeta.compat.learn2learn.data.taskset import TaskDataset, Taskset
from fastmeta.compat.learn2learn.data.utils import (
    InfiniteIterator,
    OnDeviceDataset,
    partition_task,
)

__all__ = [
    "DataDescription",
    "FilteredMetaDataset",
    "InfiniteIterator",
    "MetaDataset",
    "OnDeviceDataset",
    "TaskDataset",
    "Taskset",
    "UnionMetaDataset",
    "partition_task",
    "transforms",
]
