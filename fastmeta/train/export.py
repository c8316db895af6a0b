"""Trained networks in files that torch reads without fastmeta."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastmeta.backend import build_info
from fastmeta.data import ClassDataset, Normalization, TaskSource, TextDataset
from fastmeta.learners import MetaLearner
from fastmeta.models import BACKBONES, sparsify
from fastmeta.tasks import named_tensors
from fastmeta.train._atomic_files import write_atomic
from fastmeta.train.builders import backbone_arguments, build_learner, build_module, prepare
from fastmeta.train.config.schema import TrainConfig, configure
from fastmeta.train.errors import CheckpointError, ConfigError, require
from fastmeta.train.results import RESULTS_NAME
from fastmeta.train.saved import SavedRun, load_run

SUFFIX = ".safetensors"
RATE = "inner_lr."  # before the name of the parameter whose learned rate it is
OTHER_RATE = "adaptation."

# The options of a run that its network is adapted with.
_OPTIONS = (
    *("method", "adaptation", "adaptation_options", "inner_lr", "inner_steps", "eval_inner_steps"),
    *("backbone", "dataset", "data_options", "ways", "shots"),
)
_ADDED = ("sparse", "kl_weight")  # which older files do not have
_WORDS = ("method", "adaptation", "backbone", "dataset", "fastmeta", "format")  # the rest is JSON


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a network takes.

    Attributes:
        kind: `None` if these are neither images nor texts.
        shape: of one input, `(C, H, W)` or `(L,)`.
        normalization: of images.
        vocabulary: number of token ids of texts.
    """

    kind: Literal["images", "texts"] | None
    shape: tuple[int, ...]
    normalization: Normalization | None = None
    vocabulary: int | None = None


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A trained learner without the data of its run.

    Attributes:
        config: the options that it is adapted with.
        device: of the learner.
        learner: adapts and predicts.
        inputs: of its network.
    """

    config: TrainConfig
    device: torch.device
    learner: MetaLearner
    inputs: Inputs


def inputs_of(source: TaskSource) -> Inputs:
    """The inputs of a run's tasks."""
    dataset = getattr(source, "dataset", None)
    tensors = [tensor for _, tensor in named_tensors(source[0].support_x, "")]
    shape = tuple(tensors[0].shape[2:])
    # A regression, perhaps of the pixels of images; or a network that reads label texts, too.
    if source.ways is None or len(tensors) > 1:
        return Inputs(kind=None, shape=shape)
    if isinstance(dataset, ClassDataset):
        return Inputs(kind="images", shape=shape, normalization=dataset.normalization)
    if isinstance(dataset, TextDataset):
        return Inputs(kind="texts", shape=shape, vocabulary=dataset.vocabulary)
    return Inputs(kind=None, shape=shape)


def export_run(path: str | Path, out: str | Path, changes: Mapping[str, Any]) -> Path:
    """Writes the best initialisation of a run as safetensors.

    The file holds the network's `state_dict()`, without a co-learner that the run may have, and
    learned inner learning rates as `inner_lr.<parameter>`; what other adaptations learn, such as
    closed forms, as `adaptation.<i>`. Its metadata are strings, and JSON
    for everything else: `method`, `adaptation` and `adaptation_options`, `inner_lr`,
    `inner_steps` and `eval_inner_steps`;
    `backbone` and the `arguments` of its class in `fastmeta.models` (but a graph);
    `dataset`, `data_options`, `ways` and `shots`; `inputs`: `"images"`, `"texts"` or `null`,
    `input_shape`, and `normalization`: mean and standard deviation of pixels in [0, 1] that
    images were scaled with, or `null`; `step`, the meta-steps taken, and `fastmeta`, the version.

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
    require("safetensors", "An export")
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
    # The rates of a co-learner's parameters come last, and are left out.
    own = run.learner.adaptation.rates
    rates = dict(zip(_rate_names(network, len(own)), own, strict=False))
    return {n: t.detach().contiguous() for n, t in {**network.state_dict(), **rates}.items()}


def _rate_names(network: nn.Module, count: int) -> Iterable[str]:
    names = [RATE + name for name, param in network.named_parameters() if param.requires_grad]
    return names if count >= len(names) else [f"{OTHER_RATE}{i}" for i in range(count)]


def _metadata(run: SavedRun, alone: TrainConfig) -> dict[str, str]:
    test = run.sources["test"]
    inputs = inputs_of(test)
    scaled = inputs.normalization
    arguments = backbone_arguments(alone, test)
    values = {
        "fastmeta": build_info().version,
        **{name: getattr(alone, name) for name in (*_OPTIONS, *_ADDED)},
        "arguments": {k: v for k, v in arguments.items() if not isinstance(v, Tensor)},
        "inputs": inputs.kind,
        "input_shape": inputs.shape,
        "normalization": None if scaled is None else scaled._asdict(),
        "step": run.step,
    }
    return {k: v if k in _WORDS else json.dumps(v) for k, v in values.items()}


def load_export(path: str | Path, changes: Mapping[str, Any]) -> Exported:
    """The learner in a file of `export_run`, which needs no data.

    Args:
        path: the file.
        changes: options that differ from the run's, such as `eval_inner_steps` or `device`.

    Raises:
        CheckpointError: if the file cannot be read, or is not one of `export_run`.
        ConfigError: if a change is not valid, or the inputs are neither images nor texts.
        MissingPackageError: if safetensors is missing.
    """
    require("safetensors", "An export")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}).") from error
    if not {*_OPTIONS, "arguments", "inputs"} <= {*metadata}:
        raise CheckpointError(
            f"{path}: expected a file of 'fastmeta export'; its metadata lack the options of a "
            "run. Export the run again."
        )
    about = {k: v if k in _WORDS else json.loads(v) for k, v in metadata.items()}
    scaled, arguments = about["normalization"], about["arguments"]
    inputs = Inputs(
        kind=about["inputs"],
        shape=tuple(about["input_shape"]),
        normalization=None if scaled is None else Normalization(**scaled),
        vocabulary=arguments.get("vocabulary"),
    )
    if inputs.kind is None:
        raise ConfigError(
            f"{path}: expected a network for images or texts; it is for dataset "
            f"{about['dataset']!r}."
        )
    # Any method will do: what was learned is in the weights and the adaptation.
    given = {name: about[name] for name in (*_OPTIONS, *_ADDED) if name in about}
    config = configure(given, {"method": "maml"}, changes)
    device = prepare(config)
    network = BACKBONES[config.backbone].network(**arguments)
    network = (sparsify(network) if config.sparse else network).to(device)
    network.load_state_dict(
        {k: t for k, t in tensors.items() if not k.startswith((RATE, OTHER_RATE))}
    )
    learner = build_learner(config, network)
    with torch.no_grad():
        rates = learner.adaptation.rates
        for name, rate in zip(_rate_names(network, len(rates)), rates, strict=False):
            rate.copy_(tensors[name])
    return Exported(config=config, device=device, learner=learner, inputs=inputs)
