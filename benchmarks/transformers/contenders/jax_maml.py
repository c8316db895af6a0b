"""JAX: ``jit`` of the gradient through a ``scan`` over the inner steps.

In MixFlow form (Kemaev et al. 2025) the inner gradient has its own derivative, forward over
reverse: the tangent of the gradient along the cotangent. It keeps the parameters before each inner
step, so inner gradients are not computed again. Blocks are rematerialised, in a ``scan``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.transformers.cases import Case
from benchmarks.transformers.contenders.jax_network import forward


def make(case: Case, module: Any, batch: Any, *, mixflow: bool = False) -> Any:
    named = {name: jnp.asarray(p.detach().numpy()) for name, p in module.named_parameters()}
    trainable = [name for name, p in module.named_parameters() if p.requires_grad]
    frozen = {name: p for name, p in named.items() if name not in trainable}
    arrays = [jnp.asarray(part.numpy()) for part in batch]

    def loss(params: Any, frozen: Any, x: Any, y: Any) -> Any:
        logits = forward(case, {**frozen, **params}, x, remat=mixflow)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], -1))

    gradient = jax.grad(loss)
    inner_gradient = forward_over_reverse(gradient) if mixflow else gradient

    def task(params: Any, frozen: Any, x: Any, y: Any, query_x: Any, query_y: Any) -> Any:
        def step(fast: Any, _: None) -> Any:
            grads = inner_gradient(fast, frozen, x, y)
            return {name: p - case.lr * grads[name] for name, p in fast.items()}, None

        def query_loss(params: Any) -> Any:
            fast, _ = jax.lax.scan(step, params, length=case.steps)
            return loss(fast, frozen, query_x, query_y)

        return jax.grad(query_loss)(params)

    def mean(params: Any, frozen: Any, *arrays: Any) -> Any:
        # One task after another, as all contenders do.
        grads = jax.lax.map(lambda parts: task(params, frozen, *parts), arrays)
        return {name: jnp.mean(g, 0) for name, g in grads.items()}

    params = {name: named[name] for name in trainable}
    compiled = jax.jit(mean).lower(params, frozen, *arrays).compile()

    def meta_gradient() -> Any:
        grads = jax.block_until_ready(compiled(params, frozen, *arrays))
        return [np.asarray(grads[name]) for name in trainable]

    return meta_gradient


def forward_over_reverse(gradient: Any) -> Any:
    """A gradient whose derivative, a Hessian-vector product, is taken in forward mode.

    Args:
        gradient: the gradient of a loss with respect to its first argument.
    """

    @jax.custom_vjp
    def differentiable(params: Any, *constants: Any) -> Any:
        return gradient(params, *constants)

    def pass_forward(params: Any, *constants: Any) -> Any:
        return gradient(params, *constants), (params, constants)

    def pass_backward(saved: Any, cotangent: Any) -> Any:
        params, constants = saved
        product = jax.jvp(lambda p: gradient(p, *constants), (params,), (cotangent,))[1]
        return product, *(None for _ in constants)

    differentiable.defvjp(pass_forward, pass_backward)
    return differentiable
