"""Kernel regression on features, in closed form: the inner half of AMFS, our reconstruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta._checks import check_positive
from fastmeta.adaptation.closed_form import ClosedForm, Fit, solve
from fastmeta.functional import Network, Predictor
from fastmeta.tasks import Examples


class KernelHead(ClosedForm):
    """Kernel regression of the residuals on the features of the network: AMFS, reconstructed.

    Park & Kang 2024, "Adaptive Meta-Learning in Functional Space" (arXiv 2411.00404), of which only
    the abstract was available to us: an inner problem solved in function space, in closed form.
    **All of this is our reconstruction.** With the features `phi`, the inputs of the last linear
    layer, and the support set `X, Y`:

        f'(x) = f(x) + k(x, X) (K + r m I)^{-1} (Y - f(X)),    K = k(X, X)
        k(u, v) = sum_j c_j exp(-|phi(u) - phi(v)|^2 / (2 s_j^2 d))

    Here `m` is the mean of the diagonal of `K`, and `d` the mean squared distance between the
    features of two support examples, which makes `k` independent of the scale of the features. `Y`
    are one-hot vectors minus `1 / classes`. `c`, `s`, `r` and the scale of the outputs for classes
    are learned with the initialisation, by their logarithms. The result is a predictor.

    Args:
        ridge: `r`, initially.
        widths: the `s_j`, initially; `c_j` begins as one over their number.
        scale: of the outputs for classes, initially.

    Raises:
        ValueError: if an argument is not positive, or there are no widths; in use, if the network
            does not end with a linear layer.
    """

    centred = True

    def __init__(
        self,
        ridge: float = 0.1,
        widths: Sequence[float] = (0.5, 1.0, 2.0),
        scale: float = 10.0,
    ) -> None:
        super().__init__(scale)
        check_positive("ridge", ridge)
        if not widths:
            raise ValueError("widths must be at least one positive number, got none.")
        for width in widths:
            check_positive("widths", width)
        self.ridge = ridge
        self.widths = tuple(widths)

    @override
    def positive(self) -> Mapping[str, Sequence[float] | float]:
        count = len(self.widths)
        return {"ridge": self.ridge, "widths": self.widths, "weights": [1 / count] * count}

    @override
    def fit(
        self, network: Network, params: Sequence[Tensor], y: Examples, create_graph: bool
    ) -> Fit:
        outputs, features, _ = network.with_features(params)
        targets, scale = self.targets(outputs, y)
        ridge, widths, weights = (rate.double().exp() for rate in self.rates[:-1])
        points = features.double()
        distances = _squared_distances(points, points)
        count = len(points)
        # A tiny number for support sets whose features are all equal.
        mean = distances.sum() / max(count * (count - 1), 1) + 1e-12
        precisions = 1 / (2 * widths.square() * mean)
        kernel = _mixture(distances, precisions, weights)
        coefficients = solve(kernel, (targets - outputs).double(), ridge)
        fixed = [points, coefficients, precisions, weights, scale]
        return Fit(KernelRegression([*params, *fixed]), outputs)


class KernelRegression(Predictor):
    """`c (f(x) + k(x, X) a)`, with the kernel of `KernelHead`.

    Its tensors are those of the network, then the features of `X`, `a`, the factors of the squared
    distances, the weights of the kernels and the factor `c`.
    """

    @override
    def outputs(self, network: Network) -> Tensor:
        points, coefficients, precisions, weights, scale = self[-5:]
        outputs, features, _ = network.with_features(self[:-5])
        distances = _squared_distances(features.double(), points)
        kernel = _mixture(distances, precisions, weights)
        return scale * (outputs + (kernel @ coefficients).to(outputs.dtype))


class RidgeHead(ClosedForm):
    """Ridge regression of the residuals on the features of the network.

    [`KernelHead`][fastmeta.adaptation.KernelHead] with the linear kernel `k(u, v) = phi(u) phi(v)`,
    likewise **our reconstruction** of AMFS. Kernel regression is then ridge regression in weight
    space, so that the result is fast weights: those of the last layer `W`, with the features `P`
    of the support set, one row each:

        W' = W + ((P P^T + r m I)^{-1} (Y - f(X)))^T P

    `f(X)` includes the bias, which is not adapted; weight and bias of the last layer are multiplied
    by the scale of the outputs for classes. The ridge regression of Bertinetto et al. 2019
    ("Meta-learning with differentiable closed-form solvers"), to the residuals of a network.

    Args:
        ridge: `r` in units of `m`, the mean of the diagonal of `P P^T`; initially, learned by its
            logarithm with the initialisation, as is the scale.
        scale: of the outputs for classes, initially.

    Raises:
        ValueError: if an argument is not positive; in use, if the network does not end with a
            linear layer whose bias, if any, is trained.
    """

    centred = True

    def __init__(self, ridge: float = 0.1, scale: float = 10.0) -> None:
        super().__init__(scale)
        check_positive("ridge", ridge)
        self.ridge = ridge

    @override
    def positive(self) -> Mapping[str, Sequence[float] | float]:
        return {"ridge": self.ridge}

    @override
    def fit(
        self, network: Network, params: Sequence[Tensor], y: Examples, create_graph: bool
    ) -> Fit:
        outputs, features, head = network.with_features(params)
        layer = network.model.module.get_submodule(head.name)
        if head.bias is None and getattr(layer, "bias", None) is not None:
            raise ValueError(
                f"the bias of {head.name!r} is frozen, but RidgeHead scales it with the weight. "
                "Train it, remove it, or use adaptation.KernelHead."
            )
        targets, scale = self.targets(outputs, y)
        points = features.double()
        residual = (targets - outputs).double()
        coefficients = solve(points @ points.T, residual, self.rates[0].double().exp())
        fast = list(params)
        weight = fast[head.weight]
        fast[head.weight] = scale * (weight + (coefficients.T @ points).to(weight.dtype))
        if head.bias is not None:
            fast[head.bias] = scale * fast[head.bias]
        return Fit(fast, outputs)


def _squared_distances(u: Tensor, v: Tensor) -> Tensor:
    """`|u_i - v_j|^2`, `(n, m)`; not by `cdist`, whose derivative at 0 is undefined."""
    squares = u.square().sum(1)[:, None] + v.square().sum(1)
    return (squares - 2 * u @ v.T).clamp(min=0)


def _mixture(distances: Tensor, precisions: Tensor, weights: Tensor) -> Tensor:
    """`sum_j c_j exp(-p_j d)` of squared distances `(n, m)`."""
    each = torch.exp(-precisions[:, None, None] * distances)
    found: Tensor = torch.tensordot(each, weights, ([0], [0]))
    return found
