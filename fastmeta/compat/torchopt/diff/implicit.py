"""Implicit differentiation of the solution of an optimality condition."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from fastmeta.compat.torchopt._meta_module import MetaGradientModule
from fastmeta.compat.torchopt.linear_solve import LinearSolver, solve_normal_cg

__all__ = ["ImplicitMetaGradientModule", "custom_root"]


def custom_root(
    optimality_fn: Callable[..., Any],
    argnums: int | tuple[int, ...],
    has_aux: bool = False,
    solve: LinearSolver | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator for solvers, which differentiates the solution of `optimality_fn(x, ...) = 0`.

    By the implicit function theorem: the derivative of a loss with respect to an argument is
    `-(d optimality_fn / d argument)^T A^-T v`, where `A = d optimality_fn / d x`, both at the
    solution, and `v` is the derivative with respect to the solution. Not differentiable twice.

    Args:
        optimality_fn: of the solution and the solver's other arguments, in their order; tensors of
            the shapes of the solution.
        argnums: positions of the arguments of the solver that are differentiated; not 0, the
            initial `x`.
        has_aux: whether the solver returns a pair, the solution and something else.
        solve: the linear solver; `solve_normal_cg()` by default.

    Raises:
        ValueError: if `argnums` has 0, or, from the solver, if it has keyword-only arguments.
    """
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if 0 in positions:
        raise ValueError("argnums: expected no 0, the position of the initial solution.")
    linear = solve_normal_cg() if solve is None else solve

    def decorate(solver: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(solver)

        @wraps(solver)
        def solved(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            if bound.kwargs:
                raise ValueError(
                    f"{solver.__name__} has keyword-only arguments, {', '.join(bound.kwargs)}; "
                    "expected positional ones, in the order of those of optimality_fn."
                )
            given = bound.args
            with torch.no_grad():
                result = solver(*given)
            solution, aux = result if has_aux else (result, None)
            learned = tuple(given[i] for i in positions)

            def residual(x: Any, replaced: Any) -> Any:
                arguments = [x, *given[1:]]
                for i, value in zip(positions, replaced, strict=True):
                    arguments[i] = value
                return optimality_fn(*arguments)

            attached = attach(residual, solution, learned, linear)
            return (attached, aux) if has_aux else attached

        return solved

    return decorate


def attach(
    residual: Callable[[Any, Any], Any], solution: Any, arguments: Any, solve: LinearSolver
) -> Any:
    """The solution of `residual(x, arguments) = 0` as a differentiable function of `arguments`.

    Args:
        residual: of structures of tensors like `solution` and `arguments`.
        solution: the solution.
        arguments: tensors and other objects.
        solve: the linear solver.
    """
    values, x_structure = tree_flatten(solution)
    leaves, structure = tree_flatten(arguments)
    learned = [i for i, t in enumerate(leaves) if isinstance(t, Tensor) and t.requires_grad]

    def of_leaves(x: tuple[Tensor, ...], replaced: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        others = [t.detach() if isinstance(t, Tensor) else t for t in leaves]
        for i, value in zip(learned, replaced, strict=True):
            others[i] = value
        found = residual(tree_unflatten(list(x), x_structure), tree_unflatten(others, structure))
        return tuple(tree_flatten(found)[0])

    inputs = [*values, *(leaves[i] for i in learned)]
    outputs = _Root.apply(of_leaves, solve, len(values), *inputs)  # type: ignore[no-untyped-call]
    return tree_unflatten(list(outputs), x_structure)


class _Root(torch.autograd.Function):
    """The solution, whose derivatives are those of the implicit function."""

    @staticmethod
    def forward(ctx: Any, residual: Any, solve: LinearSolver, count: int, *tensors: Tensor) -> Any:
        ctx.residual, ctx.solve, ctx.count = residual, solve, count
        ctx.save_for_backward(*(t.detach() for t in tensors))
        return tuple(t.detach().clone() for t in tensors[:count])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *v: Tensor) -> Any:
        saved = tuple(ctx.saved_tensors)
        x, arguments = saved[: ctx.count], saved[ctx.count :]
        with torch.enable_grad():
            transposed = torch.func.vjp(lambda *t: ctx.residual(t, arguments), *x)[1]
            u = ctx.solve(transposed, tuple(-t for t in v))
            through = torch.func.vjp(lambda *t: ctx.residual(x, t), *arguments)[1]
            return (None, None, None, *[None] * ctx.count, *through(u))


class ImplicitMetaGradientModule(MetaGradientModule):
    """A module whose parameters, after `solve`, are functions of its meta-parameters.

    ```python
    class Ridge(ImplicitMetaGradientModule, linear_solve=linear_solve.solve_normal_cg()):
        def __init__(self, strength):  # tensors and modules given here are meta-parameters
            super().__init__()
            self.strength = strength
            self.weight = torch.nn.Parameter(torch.zeros(3))

        def objective(self, x, y):
            error = (x @ self.weight - y).square().mean()
            return error + self.strength.exp() * self.weight.square().sum()

        def solve(self, x, y):
            optimizer = torch.optim.LBFGS(self.parameters())
            ...
    ```

    A subclass defines `solve`, which changes the parameters in place and runs without gradients
    (use `torch.enable_grad`), and either `objective`, a scalar of which they are a minimum, or
    `optimality`, a tuple of tensors that are zero there, in the order of `parameters()`.

    Raises:
        TypeError: when a subclass is defined that has neither.
    """

    linear_solve: LinearSolver | None = None

    def __init_subclass__(cls, linear_solve: LinearSolver | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if linear_solve is not None:
            cls.linear_solve = linear_solve
        base = ImplicitMetaGradientModule
        if cls.objective is base.objective and cls.optimality is base.optimality:
            raise TypeError(f"{cls.__name__} must define objective or optimality; it has neither.")
        if "solve" in cls.__dict__:
            cls.solve = _implicit(cls.__dict__["solve"])  # type: ignore[method-assign]

    def solve(self, *args: Any, **kwargs: Any) -> Any:
        """Moves the parameters to the solution; to be defined by a subclass."""
        raise NotImplementedError

    def objective(self, *args: Any, **kwargs: Any) -> Tensor:
        """The scalar that is minimized, of the same arguments as `solve`."""
        raise NotImplementedError

    def optimality(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """What is zero at the solution, by default the gradient of the objective."""
        named = dict[str, Tensor](self.named_parameters())

        def objective(params: dict[str, Tensor]) -> Tensor:
            with self.replaced(params, {}):
                return self.objective(*args, **kwargs)

        return tuple(torch.func.grad(objective)(named).values())


def _implicit(solve: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(solve)
    def solved(self: ImplicitMetaGradientModule, *args: Any, **kwargs: Any) -> Any:
        count = len(list(self.named_parameters(remove_duplicate=False)))
        if len(list(self.parameters())) != count:
            raise ValueError("parameters that are tied to each other cannot be differentiated.")
        # Those of an earlier call have a graph.
        leaves: dict[str, Tensor] = {
            n: nn.Parameter(p.detach()) for n, p in self.named_parameters() if not p.is_leaf
        }
        self.set_parameters(leaves)
        with torch.no_grad():
            output = solve(self, *args, **kwargs)
        params: dict[str, Tensor] = {n: p.detach() for n, p in self.named_parameters()}

        def residual(x: Any, meta: Any) -> tuple[Tensor, ...]:
            with self.replaced(x, meta):
                return self.optimality(*args, **kwargs)

        linear = type(self).linear_solve or solve_normal_cg()
        attached = attach(residual, params, dict(self.all_meta_parameters()), linear)
        self.set_parameters(attached)
        return output

    return solved
