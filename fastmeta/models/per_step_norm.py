"""Per-step BatchNorm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastmeta.inner_step import current_step


class PerStepBatchNorm2d(nn.Module):
    """One BatchNorm2d per inner step, each with its own statistics and affine transform.

    Antoniou et al. 2019, "How to train your MAML", section 4: per-step running statistics (BNRS),
    weights and biases (BNWB). The support set at inner step `k` (from 0) uses the `k`-th;
    further steps, the adapted network and calls outside an inner loop use the last.

    Args:
        num_features: channels.
        steps: number of BatchNorms, usually the number of inner steps in meta-training.
        **options: options of each `nn.BatchNorm2d`.

    Input and output `(n, num_features, height, width)`.

    Attributes:
        steps: the BatchNorms.

    Raises:
        ValueError: if `steps` is below 1.
    """

    def __init__(self, num_features: int, steps: int, **options: Any) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps must be at least 1; got {steps}.")
        self.steps = nn.ModuleList(nn.BatchNorm2d(num_features, **options) for _ in range(steps))

    @property
    def current(self) -> nn.Module:
        """The BatchNorm of the current inner step."""
        step, last = current_step(), len(self.steps) - 1
        return self.steps[last if step is None else min(step, last)]

    def forward(self, x: Tensor) -> Tensor:
        """The images, normalized by the BatchNorm of the current inner step."""
        normalized: Tensor = self.current(x)
        return normalized
