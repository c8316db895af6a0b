"""Torch's random number generators in checkpoints."""

from __future__ import annotations

from typing import Any

import torch


def torch_generators() -> dict[str, Any]:
    """The states of the CPU's generator and of those of all GPUs."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}


def set_torch_generators(state: dict[str, Any]) -> None:
    """Sets the states that `torch_generators` has returned, of as many GPUs as there are."""
    torch.set_rng_state(state["cpu"])
    for i, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, i)
