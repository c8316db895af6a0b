"""Sparse variational layers, whose weights are pruned by their signal-to-noise ratio (B-SMALL)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastmeta._checks import check_nonnegative

# The approximation of the KL divergence, Molchanov et al. 2017, equation 14.
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695
_MAX_LOG_ALPHA = 10.0
THRESHOLD = 3.0
"""Weights with a larger log alpha are pruned."""


def log_alpha(weight: Tensor, log_sigma: Tensor) -> Tensor:
    """`ln(sigma^2 / weight^2)` of each weight, clamped to `[-10, 10]`.

    Clamped weights have no gradient: those with `|weight| > 148 sigma` at first.
    """
    ratio = 2 * log_sigma - 2 * torch.log(weight.abs() + 1e-8)
    return ratio.clamp(-_MAX_LOG_ALPHA, _MAX_LOG_ALPHA)


def kl_divergence(weight: Tensor, log_sigma: Tensor) -> Tensor:
    """The KL divergence of the weights' normal distributions from the log-uniform prior, summed.

    `k1 sigmoid(-k2 - k3 la) + ln(1 + exp(-la)) / 2` with `la = log_alpha(weight, log_sigma)`, which
    decreases in `la` to 0; Molchanov, Ashukha, Vetrov 2017, "Variational Dropout Sparsifies Deep
    Neural Networks", equation 14.
    """
    la = log_alpha(weight, log_sigma)
    return (_K1 * torch.sigmoid(-_K2 - _K3 * la) + 0.5 * F.softplus(-la)).sum()


class KLPenalty:
    """The KL divergence of all sparse layers of a network, times a weight (B-SMALL).

    A `penalty` of [`fastmeta.MetaLearner`][], which adds it to the support and query losses. Set
    `weight` between meta-steps to change it; it is not part of the learner's state.

    Args:
        weight: of the sum over all weights of the network. The authors begin with 2e-6 and add 1e-6
            every 1,000 meta-steps up to 1e-5.

    Raises:
        ValueError: if `weight` is negative; or later, if the network has no sparse layer.
    """

    def __init__(self, weight: float) -> None:
        check_nonnegative("weight", weight)
        self.weight = weight

    def __call__(self, params: Mapping[str, Tensor]) -> Tensor:
        """The penalty of parameters by name."""
        pairs = _pairs(params)
        return self.weight * torch.stack([kl_divergence(*pair) for pair in pairs.values()]).sum()


def sparsity(
    params: nn.Module | Mapping[str, Tensor], threshold: float = THRESHOLD
) -> dict[str, float]:
    """The share of pruned weights of each sparse layer, and of all (`"total"`).

    Args:
        params: a network, or its parameters by name, such as the fast weights that
            [`adapt`][fastmeta.learners.MetaLearner.adapt] returns.
        threshold: of log alpha.

    Raises:
        ValueError: if there is no sparse layer.
    """
    named = dict(params.named_parameters()) if isinstance(params, nn.Module) else params
    with torch.no_grad():
        pruned = {name: log_alpha(*pair) > threshold for name, pair in _pairs(named).items()}
    found = {name: part.double().mean().item() for name, part in pruned.items()}
    total = torch.cat([part.flatten() for part in pruned.values()])
    return {**found, "total": total.double().mean().item()}


def _pairs(params: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Weights and logarithms of standard deviations, by the names of the layers."""
    suffix = "log_sigma"
    layers = [name[: -len(suffix)] for name in params if name.split(".")[-1] == suffix]
    layers = [layer for layer in layers if f"{layer}weight" in params]  # others are frozen
    if not layers:
        raise ValueError(
            "the network has no sparse layer with a trainable log_sigma. Make its layers sparse "
            "with fastmeta.models.sparsify before the learner is built."
        )
    return {
        layer.rstrip("."): (params[f"{layer}weight"], params[f"{layer}{suffix}"])
        for layer in layers
    }


class _Sparse(nn.Module):
    """What the layers share: the parameter `log_sigma`, and how an output is drawn."""

    weight: Tensor
    bias: Any
    threshold: float

    def _start(self, log_sigma: float, threshold: float) -> None:
        self.log_sigma = nn.Parameter(torch.full_like(self.weight, log_sigma))
        self.threshold = threshold

    def _apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    @override
    def forward(self, x: Tensor) -> Tensor:
        """The outputs: random in training, of the weights that are not pruned in evaluation."""
        if not self.training:
            kept = log_alpha(self.weight, self.log_sigma) < self.threshold
            return self._apply_weight(x, self.weight * kept, self.bias)
        mean = self._apply_weight(x, self.weight, self.bias)
        variance = self._apply_weight(x.square(), torch.exp(2 * self.log_sigma), None)
        # The square root of 0, where all inputs are 0, has no derivative. Noise in contiguous order
        # does not depend on the memory order of the images.
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)
        return mean + (variance + 1e-16).sqrt() * noise


class SparseLinear(_Sparse, nn.Linear):
    """A linear layer whose weights are `N(weight, exp(log_sigma)^2)` (B-SMALL).

    Madan, Prasad 2021, "B-SMALL: A Bayesian Neural Network approach to Sparse Model-Agnostic
    Meta-Learning" (arXiv 2101.00203), with the details of the authors' code. In training, outputs
    are drawn by local reparametrization: `x W + b + sqrt(x^2 sigma^2) eps`; in evaluation, weights
    of `log_alpha` above the threshold are 0, and the others their means.

    Args:
        in_features: as of `nn.Linear`, likewise below.
        out_features: see there.
        bias: see there; a plain parameter.
        log_sigma: start of the logarithms of the standard deviations.
        threshold: of log alpha; infinity prunes nothing.

    Attributes:
        weight: the means, with torch's start; the authors' is Kaiming normal.
        log_sigma: logarithms of the standard deviations, of the shape of `weight`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        log_sigma: float = -8.0,
        threshold: float = THRESHOLD,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self._start(log_sigma, threshold)

    @override
    def _apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


class SparseConv2d(_Sparse, nn.Conv2d):
    """A convolution whose weights are `N(weight, exp(log_sigma)^2)`.

    As [`SparseLinear`][fastmeta.models.SparseLinear].

    Args:
        in_channels: as of `nn.Conv2d`, likewise below.
        out_channels: see there.
        kernel_size: see there.
        log_sigma: see [`SparseLinear`][fastmeta.models.SparseLinear].
        threshold: see [`SparseLinear`][fastmeta.models.SparseLinear].
        **options: further options of `nn.Conv2d`, such as `padding`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        log_sigma: float = -8.0,
        threshold: float = THRESHOLD,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)
        self._start(log_sigma, threshold)

    @override
    def _apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = self._conv_forward(x, weight, bias)
        return output


def sparsify(module: nn.Module, log_sigma: float = -8.0, threshold: float = THRESHOLD) -> nn.Module:
    """Replaces the linear and two-dimensional convolutional layers of a network by sparse ones.

    Their weights and biases stay the same parameters, the weights as means; tied weights share
    their standard deviations. Subclasses of
    `nn.Linear` and `nn.Conv2d` are left as they are.

    Args:
        module: the network, which is changed.
        log_sigma: start of the logarithms of the standard deviations; -8 in the authors' code.
        threshold: of log alpha.

    Returns:
        The network; a new layer if it is a layer itself.

    Raises:
        ValueError: if there is no such layer.
    """
    found: dict[nn.Module, _Sparse] = {}
    tied: dict[Tensor, nn.Parameter] = {}
    for layer in list(module.modules()):
        if type(layer) in (nn.Linear, nn.Conv2d):
            other = found[layer] = _sparse(layer, log_sigma, threshold)
            other.log_sigma = tied.setdefault(other.weight, other.log_sigma)
    if not found:
        raise ValueError(
            f"{type(module).__name__} has no nn.Linear or nn.Conv2d; expected at least one."
        )
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child in found:
                parent._modules[name] = found[child]
    return found.get(module, module)


def _sparse(layer: nn.Module, log_sigma: float, threshold: float) -> _Sparse:
    other: SparseLinear | SparseConv2d
    with torch.device("meta"):  # draws no random numbers
        if isinstance(layer, nn.Conv2d):
            names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
            options: dict[str, Any] = {name: getattr(layer, name) for name in names}
            other = SparseConv2d(layer.in_channels, layer.out_channels, bias=False, **options)
        else:
            assert isinstance(layer, nn.Linear)
            other = SparseLinear(layer.in_features, layer.out_features, False)
    other.weight, other.bias = layer.weight, layer.bias
    other._start(log_sigma, threshold)
    return other.train(layer.training)
