"""Calls of language models without the cache of keys and values that generation uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fastmeta.functional._checkpointing import ForwardPlan


def without_cache(module: nn.Module, plan: ForwardPlan) -> ForwardPlan:
    """A plan that turns off `config.use_cache` of the module and its parts in its context, too.

    Models of Hugging Face return the cache by default. Nothing reads it in training: it takes time
    and memory, and recomputed activations would be appended to it.

    Args:
        module: the module.
        plan: the plan of its forward pass.
    """
    found = (getattr(part, "config", None) for part in module.modules())
    configs: dict[int, Any] = {id(config): config for config in found if _caches(config)}

    @contextmanager
    def applied() -> Iterator[None]:
        on = [config for config in configs.values() if _caches(config)]
        for config in on:
            config.use_cache = False
        try:
            with plan():
                yield
        finally:
            for config in on:
                config.use_cache = True

    return applied if configs else plan


def _caches(config: object) -> bool:
    return getattr(config, "use_cache", None) is True
