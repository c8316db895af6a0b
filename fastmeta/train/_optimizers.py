"""The outer optimizer of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from fastmeta.learners.learner import OptimizerFactory
from fastmeta.train.config.schema import TrainConfig

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


def outer_optimizer(config: TrainConfig) -> OptimizerFactory:
    """Makes it from the parameters; it clips the meta-gradient to `config.clip_norm`, if not 0."""

    def make(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        learned = list(params)

        def clip(*_: object) -> None:
            nn.utils.clip_grad_norm_(learned, config.clip_norm)

        optimizer = _OPTIMIZERS[config.optimizer](learned, lr=config.lr)
        if config.clip_norm:
            optimizer.register_step_pre_hook(clip)
        return optimizer

    return make
