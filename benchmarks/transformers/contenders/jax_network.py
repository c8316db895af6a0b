"""The networks of ``benchmarks.transformers.networks`` in JAX, with the parameters of torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.transformers.cases import PATCH, Case

Params = Mapping[str, Any]


def forward(case: Case, params: Params, x: Any, *, remat: bool = False) -> Any:
    """Logits of token ids ``(n, tokens)`` or of images ``(n, 3, size, size)``.

    Args:
        case: the case.
        params: parameters, by their names in the module.
        x: the inputs.
        remat: whether the blocks keep their inputs only.
    """
    vit = case.network == "vit"
    x = _linear(params, "patches", _patches(x)) if vit else params["tokens.weight"][x]
    x = x + params["positions"]
    block = partial(_block, heads=case.heads, causal=not vit)
    layers = [_layer(params, layer) for layer in range(case.layers)]
    if remat:
        # In a loop, where XLA cannot merge the repeated computations with the first ones.
        stacked = {name: jnp.stack([layer[name] for layer in layers]) for name in layers[0]}
        body = jax.checkpoint(lambda x, own: (block(own, x), None), prevent_cse=False)
        x, _ = jax.lax.scan(body, x, stacked)
    else:
        for own in layers:
            x = block(own, x)
    x = _norm(params, "norm", x)
    return _linear(params, "head", x.mean(1) if vit else x)


def _layer(params: Params, layer: int) -> Params:
    prefix = f"blocks.{layer}."
    return {n.removeprefix(prefix): p for n, p in params.items() if n.startswith(prefix)}


def _patches(x: Any) -> Any:
    n, channels, size, _ = x.shape
    grid = x.reshape(n, channels, size // PATCH, PATCH, size // PATCH, PATCH)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(n, (size // PATCH) ** 2, -1)


def _block(params: Params, x: Any, *, heads: int, causal: bool) -> Any:
    n, tokens, width = x.shape
    qkv = _linear(params, "qkv", _norm(params, "norm_1", x))
    q, k, v = qkv.reshape(n, tokens, 3, heads, -1).transpose(2, 0, 3, 1, 4)
    scores = jnp.einsum("nhqd,nhkd->nhqk", q, k) * (width // heads) ** -0.5
    if causal:
        scores = jnp.where(jnp.tri(tokens, dtype=bool), scores, -jnp.inf)
    attended = jnp.einsum("nhqk,nhkd->nqhd", jax.nn.softmax(scores), v)
    x = x + _linear(params, "out", attended.reshape(n, tokens, width))
    hidden = _linear(params, "up", _norm(params, "norm_2", x))
    return x + _linear(params, "down", jax.nn.gelu(hidden, approximate=False))


def _norm(params: Params, name: str, x: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred * scale * params[f"{name}.weight"] + params[f"{name}.bias"]


def _linear(params: Params, name: str, x: Any) -> Any:
    out = x @ params[f"{name}.weight"].T
    if f"{name}.bias" in params:
        out = out + params[f"{name}.bias"]
    if f"{name}.lora_a" in params:  # LoRA
        out = out + (x @ params[f"{name}.lora_a"].T) @ params[f"{name}.lora_b"].T
    return out
