"""Loss function of a case."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from benchmarks.rivals.cases import Case


def loss_of(case: Case) -> Any:
    return F.mse_loss if case.regression else F.cross_entropy
