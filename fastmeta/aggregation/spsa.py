"""Task weights by simultaneous perturbation (SPSA)."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta._spsa import NAMES, SPSA, Mode
from fastmeta.aggregation.base import Aggregation
from fastmeta.gradients import TaskGradients
from fastmeta.reference import accumulation_dtype


class SPSAWeights(Aggregation):
    """Weights of the places of a meta-batch that follow the tasks' losses by SPSA.

    Boiarov, Khabarlak, Yastrebov 2021 (arXiv 2110.13188), as in the code of the authors. With
    `J(v; l) = mean_j [l_j / v_j^2 + ln v_j^2]` of the query losses `l`, meta-step `t` has weights
    in proportion to `1 / v_j^2`, and then, with random signs `d`,

        v <- v - alpha_t d [J(v + beta_t d; l) - J(v - beta_t d; l)] / (2 beta_t),
        alpha_t = alpha / t^(1/6),  beta_t = beta / t^(1/24),

    without any further pass through the network. `v` begins as `1 / T` and is rescaled to norm one
    every `rescale_every` meta-steps. Here the weights sum to one, so that the learning rate is that
    of other aggregations; in the paper their sum changes with `v`.

    Beware: **with the defaults, those of the authors, the weights stay equal** but for the noise of
    the signs, since `beta` is so much larger than `v` that losses hardly enter `J`. With `alpha =
    0.005` and `beta = 0.05` the weights do approach those of
    [`LogLoss`][fastmeta.aggregation.LogLoss], which needs no state.

    The signs are a function of `seed` and the number of the meta-step. Places whose loss is not
    finite, such as those of tasks that are left out, keep their `v`.

    Args:
        mode: `"delta"`: both values of `J` are those of this meta-step's losses; `"track"`: the
            first one is that of the previous meta-step's.
        alpha: factor of the steps; 0 keeps the weights equal.
        beta: size of the perturbation; positive.
        rescale_every: meta-steps between two rescalings.
        seed: of the signs.

    Raises:
        ValueError: if an argument is out of range; or later, if the number of tasks changes.
    """

    needs_losses = True
    state_names = NAMES

    def __init__(
        self,
        mode: Mode = "delta",
        alpha: float = 0.25,
        beta: float = 15.0,
        rescale_every: int = 100,
        seed: int = 0,
    ) -> None:
        self._rule = SPSA(mode, alpha, beta, rescale_every, seed)

    @override
    def weights(self, gradients: TaskGradients) -> Tensor:
        losses, finite, state = gradients.losses.double(), gradients.finite, gradients.state
        v = state.get("spsa_v", torch.full_like(losses, 1 / gradients.tasks))
        if len(v) != len(losses):
            raise ValueError(
                f"SPSAWeights has the weights of {len(v)} tasks, but the meta-batch has "
                f"{len(losses)}; expected meta-batches of one size."
            )
        weights, known = v.square().reciprocal(), losses.isfinite()
        if finite is not None:
            weights, known = torch.where(finite, weights, 0), known & finite
        self._rule.advance(state, v, losses, known.double() / known.sum().clamp(min=1))
        total = weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
        return (weights / total).to(accumulation_dtype(gradients.outer.dtype))
