"""JAX: ``jit`` of the gradient through a ``scan`` over the inner steps of AdamW."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.transformers.cases import Case
from benchmarks.transformers.contenders.jax_maml import forward_over_reverse
from benchmarks.transformers.contenders.jax_network import forward


def make(case: Case, module: Any, batch: Any, *, remat: bool = False, mixflow: bool = False) -> Any:
    """The meta-gradient.

    Args:
        case: the case.
        module: its network.
        batch: a batch per inner step, and the query set.
        remat: whether inner steps are computed again in the backward pass.
        mixflow: see ``jax_maml``.
    """
    params = {name: jnp.asarray(p.detach().numpy()) for name, p in module.named_parameters()}
    support_x, support_y, query_x, query_y = (jnp.asarray(part[0].numpy()) for part in batch)
    lr, (first, second), eps, decay = case.adamw.values()

    def loss(params: Any, x: Any, y: Any) -> Any:
        logits = forward(case, params, x, remat=mixflow)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], -1))

    gradient = forward_over_reverse(jax.grad(loss)) if mixflow else jax.grad(loss)

    def root(square: Any) -> Any:  # with derivative 0 at 0: unused tokens have no gradient
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)

    def step(carry: Any, inputs: Any) -> Any:
        params, means, squares = carry
        k, x, y = inputs
        grads = gradient(params, x, y)
        tree = jax.tree_util.tree_map
        means = tree(lambda m, g: first * m + (1 - first) * g, means, grads)
        squares = tree(lambda s, g: second * s + (1 - second) * g * g, squares, grads)
        params = tree(
            lambda p, m, s: (
                p * (1 - lr * decay) - lr / (1 - first**k) * m / (root(s / (1 - second**k)) + eps)
            ),
            params,
            means,
            squares,
        )
        return (params, means, squares), None

    body = jax.checkpoint(step, prevent_cse=False) if remat else step

    def outer(params: Any, *data: Any) -> Any:
        zero = {name: jnp.zeros_like(p) for name, p in params.items()}
        numbers = jnp.arange(1, case.steps + 1, dtype=jnp.float32)
        (params, _, _), _ = jax.lax.scan(body, (params, zero, zero), (numbers, *data[:2]))
        return loss(params, *data[2:])

    data = (support_x, support_y, query_x, query_y)
    compiled = jax.jit(jax.grad(outer)).lower(params, *data).compile()

    def meta_gradient() -> Any:
        grads = jax.block_until_ready(compiled(params, *data))
        return [np.asarray(grads[name]) for name in params]

    return meta_gradient
