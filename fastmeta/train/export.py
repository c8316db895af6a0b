"""Export of a trained network to a file that torch reads without fastmeta."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fastmeta.backend import build_info
from fastmeta.data import ClassDataset
from fastmeta.train._atomic_files import write_atomic
from fastmeta.train.builders import backbone_arguments, build_module
from fastmeta.train.config.schema import TrainConfig
from fastmeta.train.errors import CheckpointError, require
from fastmeta.train.results import RESULTS_NAME
from fastmeta.train.saved import SavedRun, load_run

RATE = "inner_lr."  # before the name of the parameter whose learned rate it is

# The options of a run that its network is adapted with.
_OPTIONS = (
    *("method", "adaptation", "adaptation_options", "inner_lr", "inner_steps", "eval_inner_steps"),
    *("backbone", "dataset", "data_options", "ways", "shots"),
)


def export_run(path: str | Path, out: str | Path, changes: Mapping[str, Any]) -> Path:
    """Writes the best initialisation of a run as safetensors.

    The file holds the network's `state_dict()`, without a co-learner that the run may have, and
    learned inner learning rates as `inner_lr.<parameter>`. Its metadata are strings, and JSON
    for everything else: `method`, `adaptation` and `adaptation_options`, `inner_lr`,
    `inner_steps` and `eval_inner_steps`;
    `backbone` and the `arguments` of its class in `fastmeta.models` (but a graph);
    `dataset`, `data_options`, `ways`, `shots` and `normalization`: mean and standard
    deviation of pixels in [0, 1] that inputs were scaled with, or `null`; `step`, the
    meta-steps taken, and `fastmeta`, the version.

    Args:
        path: the folder of a finished run, or a checkpoint.
        out: the file; an existing one is replaced.
        changes: options that differ from the run's, such as `data_root`.

    Returns:
        `out`.

    Raises:
        CheckpointError: if the run has not finished, or there is no usable checkpoint.
        ConfigError: if the run's data cannot be loaded.
        MissingPackageError: if safetensors is missing.
        StorageError: if the file cannot be written.
    """
    require("safetensors", "An export", extra="export")
    from safetensors.torch import save

    path, out = Path(path), Path(out)
    if path.is_dir() and not (path / RESULTS_NAME).exists():
        raise CheckpointError(
            f"{path}: expected a finished run; found no {RESULTS_NAME}. Finish it with --resume, "
            "or pass one of its checkpoints."
        )
    run = load_run(path, {**changes, "device": "cpu"})
    alone = replace(run.config, co_learner=False, co_test="main")
    data = save(_tensors(run, alone), {"format": "pt", **_metadata(run, alone)})
    write_atomic(out, lambda file: file.write(data))
    return out


def _tensors(run: SavedRun, alone: TrainConfig) -> dict[str, Tensor]:
    # With a co-learner the network is split elsewhere: other names, the same tensors in order.
    network = build_module(alone, run.sources["test"], run.device)
    trained = run.learner.module.state_dict().values()
    network.load_state_dict(dict(zip(network.state_dict(), trained, strict=True)))
    params = (name for name, param in network.named_parameters() if param.requires_grad)
    # The rates of a co-learner's parameters come last, and are left out.
    rates = {RATE + n: r for n, r in zip(params, run.learner.adaptation.rates, strict=False)}
    return {n: t.detach().contiguous() for n, t in {**network.state_dict(), **rates}.items()}


def _metadata(run: SavedRun, alone: TrainConfig) -> dict[str, str]:
    test = run.sources["test"]
    dataset = getattr(test, "dataset", None)
    scaled = dataset.normalization if isinstance(dataset, ClassDataset) else None
    arguments = backbone_arguments(alone, test)
    values = {
        "fastmeta": build_info().version,
        **{name: getattr(alone, name) for name in _OPTIONS},
        "arguments": {k: v for k, v in arguments.items() if not isinstance(v, Tensor)},
        "normalization": None if scaled is None else scaled._asdict(),
        "step": run.step,
    }
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
