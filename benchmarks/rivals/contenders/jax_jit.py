"""JAX: ``jit`` of ``vmap`` over tasks; convolutions in NHWC."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from torch import nn

from benchmarks.rivals.cases import Case


def make(case: Case, module: Any, batch: Any) -> Any:
    params = [jnp.asarray(p.detach().numpy()) for p in module.parameters()]
    arrays = [jnp.asarray(part.numpy()) for part in batch]
    forward = _forward(module)

    def value(params: Any, x: Any, y: Any) -> Any:
        out = forward(params, x)
        if case.regression:
            return jnp.mean((out - y) ** 2)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out), y[:, None], 1))

    def adapted(params: Any, x: Any, y: Any) -> Any:
        for _ in range(case.steps):
            grads = jax.grad(value)(params, x, y)
            params = [p - case.lr * g for p, g in zip(params, grads, strict=True)]
        return params

    def task(params: Any, x: Any, y: Any, query_x: Any, query_y: Any) -> Any:
        if case.order == 1:
            return jax.grad(value)(adapted(params, x, y), query_x, query_y)
        return jax.grad(lambda p: value(adapted(p, x, y), query_x, query_y))(params)

    @jax.jit
    def mean(params: Any, *arrays: Any) -> Any:
        grads = jax.vmap(task, in_axes=(None, 0, 0, 0, 0))(params, *arrays)
        return [jnp.mean(g, 0) for g in grads]

    return lambda: [np.asarray(g) for g in jax.block_until_ready(mean(params, *arrays))]


def _forward(module: nn.Sequential) -> Any:
    layers = list(module)

    def forward(params: Any, x: Any) -> Any:
        left = iter(params)
        if x.ndim == 4:
            x = x.transpose(0, 2, 3, 1)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                kernel, bias = next(left), next(left)
                x = bias + jax.lax.conv_general_dilated(
                    x, kernel, layer.stride, [(1, 1), (1, 1)], dimension_numbers=_ORDER
                )
            elif isinstance(layer, nn.BatchNorm2d):
                scale, bias = next(left), next(left)
                centred = x - x.mean((0, 1, 2))
                x = centred * jax.lax.rsqrt((centred**2).mean((0, 1, 2)) + layer.eps) * scale + bias
            elif isinstance(layer, nn.MaxPool2d):
                n, h, w, c = x.shape
                x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
            elif isinstance(layer, nn.ReLU):
                x = jax.nn.relu(x)
            elif isinstance(layer, nn.Flatten):
                x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
            else:
                weight, bias = next(left), next(left)
                x = x @ weight.T + bias
        return x

    return forward


_ORDER = ("NHWC", "OIHW", "NHWC")
