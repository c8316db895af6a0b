"""Builders: from a configuration to a network, a learner and a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.backend import build_info
from fastmeta.data import (
    PrioritizedTasks,
    TaskSource,
)
from fastmeta.distributed import ShardedSource, Sharding
from fastmeta.evaluation import ACCURACY, MSE, PSNR, Metric
from fastmeta.functional import CoLearner
from fastmeta.learners import MetaLearner, MethodSpec, build
from fastmeta.models import BACKBONES, KLPenalty, NetworkOptions, sparsify
from fastmeta.tasks import named_tensors
from fastmeta.train._optimizers import outer_optimizer
from fastmeta.train.config.schema import TrainConfig
from fastmeta.train.errors import ConfigError, explained
from fastmeta.train.progress import Progress
from fastmeta.train.run import Run
from fastmeta.train.sources import task_source
from fastmeta.train.torchrun import own_device


def build_run(
    config: TrainConfig,
    folder: Path,
    device: torch.device,
    sharding: Sharding | None = None,
    splits: Sequence[str] = ("train", "val", "test"),
) -> Run:
    """The run of a configuration, with a freshly initialised learner.

    Args:
        config: the options.
        folder: of the run.
        device: of the learner and the tasks.
        sharding: of the training tasks and of evaluations over ranks.
        splits: whose tasks are needed.

    Raises:
        ConfigError: if the data cannot be loaded, or options do not fit them or each other.
    """
    # Held-out classes are the fewest of a user's own data: what fits them fits all.
    order = splits if config.dataset_spec.splits is None else [*splits][::-1]
    quiet = sharding is not None and sharding.rank > 0
    with Progress(f"loading {config.dataset}", quiet=quiet):
        sources = {split: task_source(config, split, device) for split in order}
    module = build_module(config, sources[splits[0]], device)
    if "train" in sources:
        if config.task_reuse:
            share, rank = config.task_reuse, config.task_reuse_rank
            sources["train"] = PrioritizedTasks(sources["train"], share, rank)
        if sharding is not None:
            sources["train"] = ShardedSource(sources["train"], sharding)
    return Run(
        config=config,
        folder=folder,
        device=device,
        metric=metric_of(config),
        learner=build_learner(config, module, sharding),
        sources=sources,
        sharding=sharding,
    )


def metric_of(config: TrainConfig) -> Metric:
    """Accuracy, the squared error of regression or the signal-to-noise ratio of images."""
    if config.dataset_spec.kind == "signals":
        return PSNR
    return MSE if config.regression else ACCURACY


def find_device(name: str) -> torch.device:
    """The device `name`; `auto` is a GPU if torch finds one and the kernels are built for it.

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
    """Sets the number of CPU threads of this process, and returns its device.

    Raises:
        ConfigError: if the device is not available.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return find_device(own_device(config.device))


def build_module(config: TrainConfig, source: TaskSource, device: torch.device) -> nn.Module:
    """The freshly initialised network for the tasks of `source`.

    Its weights are a function of `config.seed`; torch's generators are left as they were.

    Raises:
        ConfigError: if the network does not fit the inputs.
    """
    with _seeded(config.seed):
        network = BACKBONES[config.backbone].network(**backbone_arguments(config, source))
        return (sparsify(network, config.log_sigma) if config.sparse else network).to(device)


def backbone_arguments(config: TrainConfig, source: TaskSource) -> dict[str, Any]:
    """The arguments of the backbone's class that make it fit the tasks of `source`.

    Raises:
        ConfigError: if it does not fit the inputs.
    """
    first = source[0]
    options = NetworkOptions(
        input_shape=next(named_tensors(first.support_x, ""))[1].shape[2:],
        ways=first.support_y.shape[-1] if config.regression else config.ways,
        hidden=config.hidden,
        dataset=getattr(source, "dataset", None),
        downsample=config.downsample,
        batch_norm_stats=config.batch_norm_stats,
        batch_norm_steps=max(config.inner_steps, 1) if config.per_step_batch_norm else None,
        pool_last=not config.co_learner,
        warp=config.warp,
    )
    with explained(f"backbone {config.backbone!r}"):
        return BACKBONES[config.backbone].arguments(options)


def build_co_learner(config: TrainConfig, module: nn.Module) -> CoLearner | None:
    """The freshly initialised co-learner for the network `module`, if there is to be one.

    Its weights are a function of `config.seed`; torch's generators are left as they were.

    Raises:
        ConfigError: if the backbone has none.
    """
    if not config.co_learner:
        return None
    make = BACKBONES[config.backbone].co_learner
    if make is None:
        raise ConfigError(f"no co-learner is known for backbone {config.backbone!r}.")
    with _seeded(-1 - config.seed):  # no network's seed
        site, head = make(module, config.ways, config.batch_norm_stats)
    return CoLearner(head.to(next(module.parameters()).device), site, config.gamma)


def build_learner(
    config: TrainConfig, module: nn.Module, sharding: Sharding | None = None
) -> MetaLearner:
    """The learner `config.method` for `module`, on one rank or one of several.

    Raises:
        ConfigError: if the method does not accept its options, or several ranks.
    """
    components = MethodSpec._fields
    names = (*components, *(f"{component}_options" for component in components))
    # The network of ALFA, for example, begins with random numbers: the same ones on all ranks.
    with explained(f"method {config.method!r}"), _seeded(-2 - config.seed):
        return build(
            config.method,
            module,
            F.mse_loss if config.regression else F.cross_entropy,
            inner_lr=config.inner_lr,
            inner_steps=config.inner_steps,
            optimizer=outer_optimizer(config),
            engine=config.engine,
            non_finite=config.non_finite,
            co_learner=build_co_learner(config, module),
            penalty=KLPenalty(config.kl_weight) if config.kl_weight else None,
            sharding=sharding,
            **{name: getattr(config, name) for name in names},
        )


def check_learner(config: TrainConfig, learner: MetaLearner, source: TaskSource) -> None:
    """Checks that the engine of the configuration can run the tasks of `source`.

    Raises:
        ConfigError: if it cannot.
    """
    with explained(f"method {config.method!r}"):
        learner.check(source[0])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch from a seed; its generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
