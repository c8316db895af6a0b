"""Case, initial weights and data in one file, for the processes of the contenders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

Case = TypeVar("Case")


def save(path: Path, case: Any, module: nn.Module, batch: Any) -> None:
    """Writes a case (a dataclass), the weights of its network, and its tasks."""
    torch.save({"case": asdict(case), "state": module.state_dict(), "batch": batch}, path)


def load(
    path: Path, kind: Callable[..., Case], build: Callable[[Case], nn.Module]
) -> tuple[Case, nn.Module, Any]:
    """Reads a case, its network with the initial weights, and its tasks.

    Args:
        path: the file.
        kind: the class of the case.
        build: makes the network of a case.
    """
    content = torch.load(path)
    case = kind(**content["case"])
    module = build(case)
    module.load_state_dict(content["state"])
    return case, module, content["batch"]
