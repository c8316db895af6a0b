"""Gradient flow of the linearised network, in closed form (Meta-RKHS-II)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from typing_extensions import override

from fastmeta._checks import check_nonnegative
from fastmeta.adaptation.closed_form import ClosedForm, Fit, check_time, solve
from fastmeta.functional import Network, Predictor, twice_differentiable
from fastmeta.tasks import Examples


class NTK(ClosedForm):
    """Gradient flow in function space under the neural tangent kernel: Meta-RKHS-II.

    Zhou et al. 2021, "Meta-Learning with Neural Tangent Kernels" (arXiv 2102.03909). With the
    Jacobian `J(x)` of the outputs at the initialisation and `H(x, X) = J(x) J(X)^T`, the network
    linearised there and trained by gradient descent with infinitely small steps on half the sum of
    the squared errors is, after time `t`:

        f_t(x) = f(x) + H(x, X) H^{-1} (I - exp(-t H)) (Y - f(X)),    H = H(X, X)

    The result is a predictor, not fast weights. `H^{-1} (I - exp(-t H))` is computed by one matrix
    exponential, which is finite for a singular `H`, too (the paper: Pade approximations); for
    `t = inf`, kernel regression, by a solve with a small ridge, which is differentiated implicitly.
    `H(x, X) s` is the derivative of `f(x)` in the direction `J(X)^T s`, so that only `H(X, X)`
    needs a vector-Jacobian product for each support example and output. Gradient steps from an
    initialisation trained in this way are not useful.

    Args:
        time: `t`, positive or infinite.
        ridge: for infinite time, what is added to `H` in units of the mean of its diagonal, which
            is a constant for derivatives; **ours**. 0 fails for a singular `H`, such as that of
            repeated examples.
        scale: of the outputs for classes, initially; learned; **ours**.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, time: float = math.inf, ridge: float = 1e-3, scale: float = 10.0) -> None:
        super().__init__(scale)
        check_time(time)
        check_nonnegative("ridge", ridge)
        self.time = time
        self.ridge = ridge

    @override
    @twice_differentiable()
    def fit(
        self, network: Network, params: Sequence[Tensor], y: Examples, create_graph: bool
    ) -> Fit:
        outputs = network.outputs(params)
        targets, scale = self.targets(outputs, y)
        finite = self.time < math.inf
        rows = _jacobian(outputs, params, create_graph and finite)
        # Autocast would round the kernel to bfloat16.
        with torch.autocast(outputs.device.type, enabled=False):
            residual = (targets - outputs).reshape(-1, 1).double()
            flat = torch.cat([row.flatten(1) for row in rows], 1)
            kernel = (flat @ flat.T).double()
            if create_graph and not finite:
                d = self._differentiable(kernel, residual, outputs, params)
            else:
                s = self._flow(kernel, residual) if finite else self._solve(kernel, residual)
                d = [torch.tensordot(s[:, 0].to(row.dtype), row, 1) for row in rows]
        return Fit(Linearised([*params, *d, scale]), outputs)

    def _flow(self, kernel: Tensor, residual: Tensor) -> Tensor:
        """`H^{-1} (I - exp(-t H)) r`, `(m, 1)`: the last column of `exp [[-t H, t r], [0, 0]]`."""
        top = torch.cat([-self.time * kernel, self.time * residual], 1)
        full: Tensor = torch.linalg.matrix_exp(torch.cat([top, torch.zeros_like(top[:1])]))
        return full[:-1, -1:]

    def _solve(self, kernel: Tensor, residual: Tensor) -> Tensor:
        """`(H + r m I)^{-1} r`, `(m, 1)`."""
        return solve(kernel, residual, self.ridge)

    def _differentiable(
        self, kernel: Tensor, residual: Tensor, outputs: Tensor, params: Sequence[Tensor]
    ) -> list[Tensor]:
        """`J^T s` for infinite time, with the derivatives of one Newton step at the solution."""
        s = self._solve(kernel, residual.detach())
        damping = self.ridge * kernel.diagonal().mean()
        product = _jvp(outputs, params, _vjp(outputs, params, s)).reshape(-1, 1).double()
        return _vjp(outputs, params, s + self._solve(kernel, residual - product - damping * s))


class Linearised(Predictor):
    """`c (f(x; theta) + J(x) d)`: the network linearised at `theta`, at `theta + d`.

    Its tensors are `theta`, `d` and the factor `c`.
    """

    @override
    @twice_differentiable()
    def outputs(self, network: Network) -> Tensor:
        count = len(self) // 2
        params, d, scale = self[:count], self[count:-1], self[-1]
        if torch.compiler.is_compiling():  # whose traces contain no calls of autograd
            with forward_ad.dual_level():
                duals = [forward_ad.make_dual(*pair) for pair in zip(params, d, strict=True)]
                primal, tangent = forward_ad.unpack_dual(network.outputs(duals))
            adapted: Tensor = scale * (primal + tangent)
            return adapted
        with torch.enable_grad():
            leaves = [p if p.requires_grad else p.detach().requires_grad_() for p in params]
            outputs = network.outputs(leaves)
            found = scale * (outputs + _jvp(outputs, leaves, d))
        return found if any(t.requires_grad for t in self) else found.detach()


def _jacobian(outputs: Tensor, params: Sequence[Tensor], create_graph: bool) -> list[Tensor]:
    """The derivatives of the outputs, flattened to `(m,)`: `(m, *shape)` for each parameter.

    One vector-Jacobian product after another: compiled ops, and some of torch's own, have none for
    a batch of vectors.
    """
    basis = torch.eye(outputs.numel(), dtype=outputs.dtype, device=outputs.device)
    rows = [_vjp(outputs, params, row, create_graph) for row in basis.unbind()]
    return [torch.stack(each) for each in zip(*rows, strict=True)]


def _vjp(
    outputs: Tensor, params: Sequence[Tensor], v: Tensor, create_graph: bool = True
) -> list[Tensor]:
    """`J^T v`, differentiable in the parameters and `v` with `create_graph`."""
    return list(
        torch.autograd.grad(
            outputs,
            params,
            v.view_as(outputs).to(outputs.dtype),
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    )


def _jvp(outputs: Tensor, params: Sequence[Tensor], d: Sequence[Tensor]) -> Tensor:
    """`J d`, of the outputs' shape, differentiable once in the parameters and `d`."""
    apply: Callable[..., Tensor] = _DirectionalDerivative.apply
    return apply(outputs, *params, *d)


class _DirectionalDerivative(torch.autograd.Function):
    """`J d` from the graph of the outputs, by the derivative of `J^T u` with respect to `u`.

    Its own derivatives are a vector-Jacobian and a Hessian-vector product. Neither autograd's
    derivatives of a forward-mode derivative nor third derivatives would do: those of torch's
    BatchNorm and LayerNorm take the statistics as constants (torch 2.13).
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, *tensors: Tensor) -> Tensor:
        ctx.outputs, ctx.count = outputs, len(tensors) // 2
        ctx.save_for_backward(*tensors)
        params, d = tensors[: ctx.count], tensors[ctx.count :]
        with torch.enable_grad():
            u = torch.zeros_like(outputs, requires_grad=True)
            found = _vjp(outputs, params, u)
            pairs = [(g, t) for g, t in zip(found, d, strict=True) if g.requires_grad]
        if not pairs:
            return torch.zeros_like(outputs)
        products, directions = zip(*pairs, strict=True)
        (result,) = torch.autograd.grad(products, u, directions)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        params, d = tensors[: ctx.count], tensors[ctx.count :]
        with torch.enable_grad():
            found = _vjp(ctx.outputs, params, v)
            # The derivatives with respect to d, which may depend on the parameters, follow apart.
            inner = [(g * t.detach()).sum() for g, t in zip(found, d, strict=True)]
            total = torch.stack(inner).sum()
        hvp: Sequence[Tensor | None] = [None] * ctx.count
        if total.requires_grad:
            hvp = torch.autograd.grad(total, params, retain_graph=True, allow_unused=True)
        return None, *hvp, *(g.detach() for g in found)
