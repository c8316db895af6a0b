"""From a configuration to tasks, a network and a learner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastmeta._options import construct
from fastmeta.backend import build_info
from fastmeta.data import (
    EpisodeSampler,
    Jitter,
    NodeDataset,
    SineTasks,
    TaskSource,
    TextDataset,
    load,
)
from fastmeta.distributed import Sharding
from fastmeta.functional import CoLearner
from fastmeta.learners import MetaLearner, MethodSpec, build
from fastmeta.models import GCN, MLP, Conv4, ResNet12, TextEncoder, conv_co_learner
from fastmeta.train.config.schema import TrainConfig
from fastmeta.train.errors import ConfigError, UserError
from fastmeta.train.metrics import ACCURACY, MSE, Metric
from fastmeta.train.torchrun import own_device

# Validation and test tasks are the same for all seeds and methods, so that runs compare on equal
# terms; training seeds are smaller. Their batches have a size of their own for the same reason.
_HELD_OUT_SEEDS = {"val": 2**63, "test": 2**63 + 1}
EVALUATION_BATCH = 20

_BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "conv4": Conv4,
    "gcn": GCN,
    "mlp": MLP,
    "resnet12": ResNet12,
    "text": TextEncoder,
}

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


def metric_of(config: TrainConfig) -> Metric:
    """Accuracy, or the squared error of regression."""
    return MSE if config.regression else ACCURACY


def find_device(name: str) -> torch.device:
    """The device ``name``; ``auto`` is a GPU if torch sees one and the kernels are built for it.

    Raises:
        ConfigError: if there is no such device, or no kernels for it.
    """
    usable = torch.cuda.is_available() and build_info().cuda is not None
    if name == "auto":
        return torch.device("cuda" if usable else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N; got {name!r}.") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"fastmeta has kernels for cpu and cuda; got device {name!r}.")
    if device.type == "cuda":
        if not usable:
            lack = "CUDA kernels in fastmeta" if torch.cuda.is_available() else "GPU seen by torch"
            raise ConfigError(f"device {name!r} needs a {lack}; see 'fastmeta info'. Or use cpu.")
        if (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device {name!r}: torch sees {torch.cuda.device_count()} GPUs.")
    return device


def prepare(config: TrainConfig) -> torch.device:
    """Sets the threads of this process; its device.

    Raises:
        ConfigError: if the device cannot be had.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return find_device(own_device(config.device))


def task_source(config: TrainConfig, split: str, device: torch.device) -> TaskSource:
    """The tasks of a split; those of ``val`` and ``test`` do not depend on seed or method.

    Raises:
        ConfigError: if the data cannot be had, or has too few classes or examples.
    """
    training = split == "train"
    seed = config.seed if training else _HELD_OUT_SEEDS[split]
    tasks = config.meta_batch if training else EVALUATION_BATCH
    queries = config.queries if training else config.eval_queries
    with _explained(f"data set {config.dataset!r}, split {split!r}"):
        if config.regression:
            tasks_of = partial(SineTasks, device=device, length=None)
            shape = (tasks, config.shots, queries, seed)
            sine: TaskSource = construct("data set 'sine'", tasks_of, config.data_options, *shape)
            return sine
        dataset = load(config.dataset, split, config.data_root, **config.data_options)
        jitter = Jitter(
            config.jitter_shift, config.jitter_degrees, config.jitter_zoom, config.jitter_flip
        )
        return EpisodeSampler(
            dataset,
            config.ways,
            config.shots,
            queries,
            tasks,
            seed,
            device=device,
            jitter=jitter if training else None,
        )


def build_module(config: TrainConfig, source: TaskSource, device: torch.device) -> nn.Module:
    """The freshly initialised network for the tasks of ``source``.

    Its weights are a function of ``config.seed``; torch's generators are left as they were.

    Raises:
        ConfigError: if the network does not fit the inputs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _network(config, source).to(device)


def _network(config: TrainConfig, source: TaskSource) -> nn.Module:
    return _BACKBONES[config.backbone](**backbone_arguments(config, source))


def backbone_arguments(config: TrainConfig, source: TaskSource) -> dict[str, Any]:
    """The arguments of the backbone's class that make it fit the tasks of ``source``.

    Raises:
        ConfigError: if it does not fit the inputs.
    """
    outputs = 1 if config.regression else config.ways
    if config.backbone in ("text", "gcn"):
        match getattr(source, "dataset", None):
            case TextDataset(vocabulary=vocabulary) if config.backbone == "text":
                return {"vocabulary": vocabulary, "ways": outputs, "hidden": config.hidden[0]}
            case NodeDataset(graph=graph) if config.backbone == "gcn":
                nodes = {"features": graph.features, "edges": graph.edges}
                return {**nodes, "ways": outputs, "hidden": config.hidden}
        needed = {"text": "a TextDataset", "gcn": "a NodeDataset"}[config.backbone]
        raise ConfigError(f"backbone {config.backbone} needs tasks drawn from {needed}.")
    shape = source[0].support_x.shape[2:]
    if config.backbone == "mlp":
        sizes = {"in_features": shape.numel(), "out_features": outputs}
        return {**sizes, "hidden": config.hidden}
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ConfigError(f"{config.backbone} needs square images; got inputs {tuple(shape)}.")
    options: dict[str, Any] = {
        "in_channels": shape[0],
        "image_size": shape[1],
        "ways": outputs,
        "batch_norm_stats": config.batch_norm_stats,
        "pool_last": not config.co_learner,
    }
    if config.backbone == "resnet12":
        first, *more = config.hidden
        hidden = config.hidden if more else tuple(first << block for block in range(4))
        return {**options, "hidden": hidden}
    options |= {"hidden": config.hidden[0], "downsample": config.downsample}
    if config.per_step_batch_norm:
        options["batch_norm_steps"] = max(config.inner_steps, 1)
    return options


def build_co_learner(config: TrainConfig, module: nn.Module) -> CoLearner | None:
    """The freshly initialised co-learner for the network ``module``, if there is to be one.

    Its weights are a function of ``config.seed``; torch's generators are left as they were.

    Raises:
        ConfigError: if none is known for the network.
    """
    if not config.co_learner:
        return None
    outputs = 1 if config.regression else config.ways
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(-1 - config.seed)  # no network's seed
        head: nn.Module
        if isinstance(module, MLP):
            *_, last = module.layers
            assert isinstance(last, nn.Linear)
            at = f"layers.{len(module.layers) - 2}"  # the output of the last hidden layer
            head = MLP(last.in_features, outputs, (last.in_features,))
        elif isinstance(module, GCN):
            at = f"convolutions.{len(module.convolutions) - 1}"
            width = module.head.in_features
            head = nn.Sequential(nn.ReLU(), MLP(width, outputs, (width,)))
        elif isinstance(module, TextEncoder):
            at, width = "norm", module.head.in_features
            head = MLP(width, outputs, (width,))
        elif isinstance(module, Conv4 | ResNet12):
            at = "features"
            head = conv_co_learner(
                *module.map_size, outputs, batch_norm_stats=config.batch_norm_stats
            )
        else:
            raise ConfigError(f"no co-learner is known for backbone {config.backbone!r}.")
    return CoLearner(head.to(next(module.parameters()).device), at, config.gamma)


def build_learner(
    config: TrainConfig, module: nn.Module, sharding: Sharding | None = None
) -> MetaLearner:
    """The learner ``config.method`` for ``module``, on one rank or one of several.

    Raises:
        ConfigError: if the method does not take its options, or several ranks.
    """

    def optimizer(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return _OPTIMIZERS[config.optimizer](params, lr=config.lr)

    tables = (*MethodSpec._fields, *(f"{room}_options" for room in MethodSpec._fields))
    with _explained(f"method {config.method!r}"):
        return build(
            config.method,
            module,
            F.mse_loss if config.regression else F.cross_entropy,
            inner_lr=config.inner_lr,
            inner_steps=config.inner_steps,
            optimizer=optimizer,
            engine=config.checked_engine,
            non_finite=config.checked_non_finite,
            co_learner=build_co_learner(config, module),
            sharding=sharding,
            **{name: getattr(config, name) for name in tables},
        )


def check_learner(config: TrainConfig, learner: MetaLearner, source: TaskSource) -> None:
    """Makes sure that the engine of the configuration can run the tasks of ``source``.

    Raises:
        ConfigError: if it cannot.
    """
    with _explained(f"method {config.method!r}"):
        learner.check(source[0])


@contextmanager
def _explained(subject: str) -> Iterator[None]:
    """Makes errors about arguments, which come from the configuration, and files the user's."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise ConfigError(f"{subject}: {error}") from error
