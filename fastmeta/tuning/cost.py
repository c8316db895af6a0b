"""Cost model of Lambda patterns, fitted to a few measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from fastmeta.tuning.timing import medians


@dataclass(frozen=True)
class CostModel:
    """Seconds of adapting to a task, per layer.

    Our reconstruction of Khabarlak 2022 (arXiv 2206.05930): `K` steps of the pattern `L` with
    the lowest layer `m` take `F_prefix + K (sum_{l >= m} F_l + sum_{l > m} Bx_l + sum_{l in L}
    Bw_l)`, where `F_l` is the forward pass of a layer and `Bx_l` and `Bw_l` the gradients in
    its input and in its weights. Here these are grouped into what can be measured from outside.

    Attributes:
        once: `F_prefix` if the layer is the lowest, and any other fixed cost of a task.
        step: cost of a step that adapts the layer alone.
        more: `Bw` of the layer, the extra cost of a step that also adapts it; 0 for the first,
            which is never above another.
    """

    once: tuple[float, ...]
    step: tuple[float, ...]
    more: tuple[float, ...]

    def predict(self, pattern: str, steps: int) -> float:
        """Seconds of `steps` inner steps.

        Args:
            pattern: bits, one per layer, such as `"00011"`.
            steps: inner steps.
        """
        lowest, *others = (k for k, bit in enumerate(pattern) if bit == "1")
        return self.once[lowest] + steps * (self.step[lowest] + sum(self.more[k] for k in others))


def measure_cost(
    adapt: Callable[[str, int], object],
    layers: int,
    steps: int,
    device: torch.device,
    *,
    quiet: bool = True,
) -> CostModel:
    """Measures each layer alone, with two numbers of steps, and together with the first layer.

    Args:
        adapt: adapts to a task, given bits and a number of steps.
        layers: number of layers.
        steps: the larger number of steps; at least 2 are taken.
        device: of `adapt`.
        quiet: whether to show no progress.
    """
    long = max(steps, 2)
    alone = [_bits({k}, layers) for k in range(layers)]
    pairs = [_bits({0, k}, layers) for k in range(layers)]
    cases = [*((p, n) for p in alone for n in (1, long)), *((p, long) for p in pairs[1:])]
    runs = {case: partial(adapt, *case) for case in cases}
    seconds = medians(runs, device, what="timing layers", quiet=quiet)
    step = [(seconds[p, long] - seconds[p, 1]) / (long - 1) for p in alone]
    more = [(seconds[p, long] - seconds[pairs[0], long]) / long for p in pairs]
    once = [seconds[p, long] - long * s for p, s in zip(alone, step, strict=True)]
    return CostModel(*(tuple(part) for part in (once, step, more)))


def _bits(chosen: set[int], layers: int) -> str:
    return "".join("1" if k in chosen else "0" for k in range(layers))
