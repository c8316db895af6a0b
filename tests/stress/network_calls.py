"""Valid calls of the ops that are parts of networks, or whole networks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fastmeta import ops, reference
from fastmeta.reference import accumulation_dtype
from fastmeta.reference.mlp import ACTIVATIONS
from tests.helpers.sequence_cases import Network, examples
from tests.stress.op_tensors import DTYPES, LAYOUTS, SOLID, WIDE, Call, Draw, tensor


def _images(draw: Draw, groups: int, dtype: torch.dtype) -> Tensor:
    n, c, h, w = (draw(st.integers(1, limit)) for limit in (3, 19, 7, 7))
    return tensor(draw, (groups * n, c, h, w), dtype)


def conv3x3(draw: Draw) -> Call:
    groups, dtype = draw(st.sampled_from([None, 1, 2])), draw(st.sampled_from(WIDE))
    x = _images(draw, groups or 1, dtype)
    lead, out = () if groups is None else (groups,), draw(st.integers(1, 19))
    weight = tensor(draw, (*lead, out, x.shape[1], 3, 3), dtype)
    bias = tensor(draw, (*lead, out), dtype) if draw(st.booleans()) else None
    return Call(
        lambda x, weight, bias, stride: ops.conv3x3(x, weight, bias, stride=stride),
        reference.conv3x3,
        [x, weight, bias, draw(st.integers(1, 2))],
    )


def batch_norm_relu(draw: Draw) -> Call:
    groups, dtype = draw(st.sampled_from([None, 1, 2])), draw(st.sampled_from(WIDE))
    x = _images(draw, groups or 1, dtype)
    shape = (*(() if groups is None else (groups,)), x.shape[1])
    weight, bias = (tensor(draw, shape, dtype) for _ in range(2))
    pool = min(x.shape[2:]) > 1 and draw(st.booleans())
    return Call(
        lambda x, weight, bias, eps: ops.batch_norm_relu(x, weight, bias, eps, pool=pool),
        lambda x, weight, bias, eps: reference.batch_norm_relu(x, weight, bias, eps, pool),
        [x, weight, bias, 1e-3],
    )


def mlp_step(draw: Draw) -> Call:
    dtype, loss = draw(st.sampled_from(WIDE)), draw(st.sampled_from(["mse", "cross_entropy"]))
    widths = draw(st.lists(st.integers(1, 34), min_size=2, max_size=4))
    params = []
    for wide, narrow in pairwise(widths):
        params.append(tensor(draw, (narrow, wide), dtype, SOLID).div_(wide**0.5))
        if draw(st.booleans()):
            params.append(tensor(draw, (narrow,), dtype, SOLID))
    tasks, layers = draw(st.integers(1, 4)), len(widths) - 1
    data = []
    for n in (draw(st.integers(1, 9)), draw(st.integers(1, 9))):
        data.append(tensor(draw, (tasks, n, widths[0]), dtype))
        if loss == "mse":
            data.append(tensor(draw, (tasks, n, widths[-1]), dtype))
        else:
            data.append(torch.randint(widths[-1], (tasks, n)))
    names = [a for a in ACTIVATIONS if a != "relu" or dtype == torch.float64]
    between = draw(
        st.lists(st.sampled_from(names), min_size=len(widths) - 2, max_size=len(widths) - 2)
    )
    how: dict[str, Any] = {
        **{"activations": between, "loss": loss, "steps": draw(st.integers(0, 3))},
        "differentiated": draw(
            st.lists(st.lists(st.booleans(), min_size=layers, max_size=layers), min_size=1)
        ),
        **{name: draw(st.sampled_from([0.0, 0.5, 1.0])) for name in ("lam_d", "lam_c", "lam_2")},
    }

    def op(*args: Any) -> list[Tensor]:
        *tensors, lr = args
        found = ops.mlp_step(*tensors, lr=lr, record_inner=how["steps"] > 0, **how)
        return [t for t in found if t is not None]

    @torch.enable_grad()
    def reference_op(*args: Any) -> list[Tensor]:
        *tensors, lr = args
        return [t for t in reference.mlp_step(*tensors, lr=float(lr), **how) if t is not None]

    return Call(op, reference_op, [params, *data, 0.02], smooth=False)


def _network(draw: Draw, smooth: bool) -> Network:
    """A chain of layers; a smooth one without ReLU, max-pooling and normalisation."""
    c, *size = (draw(st.integers(1, limit)) for limit in (5, 9, 9))
    net = Network(c, *size)
    for _ in range(draw(st.integers(1, 3))):
        stride = draw(st.integers(1, 2))
        net.conv(draw(st.integers(1, 18)), stride, draw(st.booleans()))
        size = [(n - 1) // stride + 1 for n in size]
        pools = min(size) > 1 and draw(st.booleans())
        if smooth:
            net.act(draw(st.sampled_from(["gelu", "tanh", "silu"])))
        else:
            relu, fused = draw(st.booleans()), draw(st.booleans())
            net.norm(relu and pools and fused, draw(st.integers(1, 3)), relu)
        if pools:
            size = [n // 2 for n in size]
            if not net.layers[-1].pool:
                net.pool("mean_pool" if smooth else "max_pool", 2)
    return net.linear(net.channels * size[0] * size[1], bias=draw(st.booleans()))


def sequence_step(draw: Draw) -> Call:
    smooth, loss = draw(st.booleans()), draw(st.sampled_from(["mse", "cross_entropy"]))
    # In float32, and for images of equal pixels, rounding decides about ReLU and maxima.
    dtype = draw(st.sampled_from(WIDE)) if smooth else torch.float64
    net, layouts = _network(draw, smooth), list(LAYOUTS)
    params = [LAYOUTS[draw(st.sampled_from(SOLID))](p.to(dtype)) for p in net.params]
    shots = (draw(st.integers(2, 9)), draw(st.integers(2, 9)))
    data = examples(net, loss, draw(st.integers(1, 4)), shots, dtype)
    data[::2] = [LAYOUTS[draw(st.sampled_from(layouts))](x) for x in data[::2]]
    masks = st.lists(st.booleans(), min_size=len(params), max_size=len(params))
    how: dict[str, Any] = {
        **{"layers": net.layers, "loss": loss, "steps": draw(st.integers(0, 3))},
        "differentiated": draw(st.lists(masks, min_size=1)),
        **{name: draw(st.sampled_from([0.0, 0.5, 1.0])) for name in ("lam_d", "lam_c", "lam_2")},
    }

    def op(*args: Any) -> list[Tensor]:
        *tensors, lr = args
        found = ops.sequence_step(*tensors, lr=lr, record_inner=how["steps"] > 0, **how)
        return [t for t in found[:-1] if isinstance(t, Tensor)]  # without the statistics

    @torch.enable_grad()
    def reference_op(*args: Any) -> list[Tensor]:
        *tensors, lr = args
        return [t for t in reference.sequence_step(*tensors, lr=float(lr), **how) if t is not None]

    return Call(op, reference_op, [params, *data, 0.02], smooth=False, corruptible=smooth)


def head_similarity(draw: Draw) -> Call:
    dtype, loss = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(["mse", "cross_entropy"]))
    tasks, n, classes, width = (draw(st.integers(1, limit)) for limit in (4, 9, 6, 34))
    outputs, head = (tasks, n, classes), (tasks, classes, width)
    mse = loss == "mse"
    targets = tensor(draw, outputs, dtype) if mse else torch.randint(classes, (tasks, n))
    args = [tensor(draw, (tasks, n, width), dtype), tensor(draw, outputs, dtype), targets]
    args += [tensor(draw, head, dtype), tensor(draw, head, dtype)]
    args += [tensor(draw, (tasks, classes), dtype)] if draw(st.booleans()) else []

    def op(*args: Any) -> list[Tensor]:
        *tensors, cosine, l2 = args
        found = ops.head_similarity(*tensors, loss=loss, cosine=cosine, l2=l2)
        return [t for t in found if t is not None]

    def reference_op(*args: Any) -> list[Tensor]:
        *tensors, cosine, l2 = args
        padded = tensors if len(tensors) == 6 else [*tensors, None]
        found = reference.head_similarity(*padded, loss, 1.0, cosine, l2)
        return [t for t in found if t is not None]

    return Call(op, reference_op, [*args, 0.4, 0.2], smooth=False)


def attention(draw: Draw) -> Call:
    dtype = draw(st.sampled_from(DTYPES))
    batch, shared, group = (draw(st.integers(1, 2)) for _ in range(3))
    queries, keys, width, values = (draw(st.integers(1, limit)) for limit in (70, 70, 20, 20))
    q = tensor(draw, (batch, shared * group, queries, width), dtype)
    k = tensor(draw, (batch, shared, keys, width), dtype)
    v = tensor(draw, (batch, shared, keys, values), dtype)
    mask = draw(st.sampled_from(["none", "boolean", "additive"]))
    masks: dict[str, Any] = {
        "none": None,
        "boolean": torch.rand(queries, keys) > 0.3,
        "additive": torch.randn(queries, keys).to(dtype),
    }
    options = [draw(st.booleans()), draw(st.sampled_from([None, 1, 9])), 0.3]

    def op(q: Any, k: Any, v: Any, mask: Any, causal: Any, window: Any, scale: Any) -> Tensor:
        mask = mask.detach() if isinstance(mask, Tensor) else mask  # it has no gradient
        return ops.attention(q, k, v, mask, causal=causal, window=window, scale=scale)

    def reference_op(q: Tensor, k: Tensor, v: Tensor, mask: Any, *options: Any) -> Tensor:
        wide = [t.to(accumulation_dtype(t.dtype)) for t in (q, k, v)]
        mask = mask.detach() if isinstance(mask, Tensor) else mask
        return reference.attention(*wide, mask, *options).to(q.dtype)

    return Call(op, reference_op, [q, k, v, masks[mask], *options])
