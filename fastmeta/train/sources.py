"""The task sources of a configuration."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastmeta._options import construct
from fastmeta.data import (
    ClassDataset,
    EpisodeSampler,
    ImageRegression,
    Jitter,
    TaskSource,
    TooFewError,
    class_splits,
    label_token_ids,
    load,
)
from fastmeta.models import BACKBONES
from fastmeta.train.config.schema import TrainConfig
from fastmeta.train.errors import explained

# Validation and test tasks are the same for all seeds and methods, so that runs compare on equal
# terms; training seeds are smaller. Their batches have a size of their own for the same reason.
_HELD_OUT_SEEDS = {"val": 2**63, "test": 2**63 + 1}
EVALUATION_BATCH = 20


def task_source(config: TrainConfig, split: str, device: torch.device) -> TaskSource:
    """The tasks of a split; those of `val` and `test` do not depend on seed or method.

    Raises:
        ConfigError: if the data cannot be loaded, or has too few classes or examples.
    """
    training = split == "train"
    seed = config.seed if training else _HELD_OUT_SEEDS[split]
    tasks = config.meta_batch if training else EVALUATION_BATCH
    shots = config.shots if training else config.eval_shots or config.shots
    queries = config.queries if training else config.eval_queries
    options = {**config.data_options, **(config.train_data_options if training else {})}
    with explained(f"dataset {config.dataset!r}, split {split!r}"):
        if generator := config.dataset_spec.generator:
            sizes = (tasks, shots, queries, seed)
            generated: TaskSource = construct(
                f"dataset {config.dataset!r}",
                generator,
                options,
                *sizes,
                device=device,
                length=None,
            )
            return generated
        dataset = load(config.dataset, split, config.data_root, **options)
        if config.dataset_spec.kind == "signals":
            assert isinstance(dataset, ClassDataset)
            return ImageRegression(dataset, tasks, seed, device=device)
        jitter = Jitter(
            config.jitter_shift, config.jitter_degrees, config.jitter_zoom, config.jitter_flip
        )
        labels = None
        if BACKBONES[config.backbone].label_texts:
            labels = label_token_ids(dataset.class_names, getattr(dataset, "vocabulary", 2))
        try:
            return EpisodeSampler(
                dataset,
                (config.train_ways if training else None) or config.ways,
                shots,
                queries,
                tasks,
                seed,
                device=device,
                jitter=jitter if training else None,
                skip_small=config.dataset_spec.splits is not None,
                steps_per_task=config.steps_per_task if training else 1,
                label_ids=labels,
            )
        except TooFewError as error:
            flag = "--queries " if training else "--eval-queries "
            raise ValueError(error.explain("--ways ", flag)) from error


def with_splits(config: TrainConfig) -> TrainConfig:
    """The configuration with the classes of each split of the user's own data in `data_options`.

    They are saved with it, so that a run keeps its test classes when files are added.

    Raises:
        ConfigError: if files are missing, or there are too few classes.
    """
    with explained(f"dataset {config.dataset!r}"):
        needed = (config.eval_shots or config.shots) + config.eval_queries
        splits = class_splits(config.dataset, config.data_root, config.data_options, needed)
    if splits is None:
        return config
    lists = {f"{split}_classes": names for split, names in splits.items()}
    return replace(config, data_options={**config.data_options, **lists})
