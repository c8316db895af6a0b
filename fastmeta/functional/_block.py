"""Normalisation, activations and losses in place of torch's, see `_calls`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from fastmeta import ops

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def layer_norm(
    torchs: Callable[..., Tensor],
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`F.layer_norm`."""
    run = ops.layer_norm if _normalises(input, normalized_shape, weight, bias) else torchs
    return run(input, normalized_shape, weight, bias, eps)


def rms_norm(
    torchs: Callable[..., Tensor],
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """`F.rms_norm`."""
    # torch's result has another dtype if the weight has.
    same = weight is None or weight.dtype == input.dtype
    run = ops.rms_norm if same and _normalises(input, normalized_shape, weight) else torchs
    return run(input, normalized_shape, weight, eps)


def gelu(torchs: Callable[..., Tensor], input: Tensor, *, approximate: str = "none") -> Tensor:
    """`F.gelu`."""
    run = ops.gelu if _takes(input) and approximate in ("none", "tanh") else torchs
    return run(input, approximate=approximate)


def silu(torchs: Callable[..., Tensor], input: Tensor, inplace: bool = False) -> Tensor:
    """`F.silu`."""
    if not _takes(input):
        return torchs(input, inplace)
    if not inplace:
        return ops.silu(input)
    return input.copy_(ops.silu(input.clone()))  # the op keeps its argument


def cross_entropy(
    torchs: Callable[..., Tensor],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """`F.cross_entropy`."""
    fits = (
        weight is None
        and size_average is None
        and reduce is None
        and reduction in ("mean", "sum", "none")
        and _takes(input)
        and _is_classes(target)
        and input.dim() > 0
        and target.dim() == max(input.dim() - 1, 0)
    )
    options: dict[str, Any] = {
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
    }
    if not fits:
        legacy = {"size_average": size_average, "reduce": reduce}
        return torchs(input, target, weight, **legacy, **options)
    # Under autocast, torch computes the loss in float32.
    dtype = torch.float32 if torch.is_autocast_enabled("cpu") else input.dtype
    with _torchs_error():
        return ops.cross_entropy(input.to(dtype), target, **options)


def linear_cross_entropy(
    torchs: Callable[..., Tensor],
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
) -> Tensor:
    """`F.linear_cross_entropy`: the op is chunked, whatever the options are."""
    tensors = [input, linear_weight] if linear_bias is None else [input, linear_weight, linear_bias]
    fits = (
        weight is None
        and reduction in ("mean", "sum")
        and linear_weight.dim() == 2
        and _takes(*tensors)
        and all(t.dtype == input.dtype for t in tensors)
        and not torch.is_autocast_enabled("cpu")
        and _is_classes(target)
        and input.shape[:-1] == target.shape
    )
    common: dict[str, Any] = {
        "linear_bias": linear_bias,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
    }
    if not fits:
        rest = {"weight": weight, "ignore_index": ignore_index, "options": options}
        return torchs(input, linear_weight, target, **common, **rest)
    ignored = -100 if ignore_index is None else ignore_index
    with _torchs_error():
        return ops.linear_cross_entropy(
            input, linear_weight, target, ignore_index=ignored, **common
        )


@contextmanager
def _torchs_error() -> Iterator[None]:
    """An invalid class is an `IndexError`, as of torch's function."""
    try:
        yield
    except RuntimeError as error:
        if "expected class indices" in str(error):
            raise IndexError(str(error)) from error
        raise


def _takes(*tensors: Tensor) -> bool:
    """Whether these are ordinary floating-point tensors on the CPU."""
    return not has_torch_function(tensors) and all(
        isinstance(t, Tensor) and t.device.type == "cpu" and t.dtype in _DTYPES for t in tensors
    )


def _is_classes(target: Any) -> bool:
    return (
        isinstance(target, Tensor)
        and not has_torch_function((target,))
        and target.dtype == torch.int64
        and target.device.type == "cpu"
    )


def _normalises(x: Tensor, shape: Sequence[int], *params: Tensor | None) -> bool:
    """Whether the op takes rows of this shape with these parameters."""
    given = [t for t in params if t is not None]
    shape = tuple(shape)
    if not _takes(x, *given) or not shape or 0 in shape or tuple(x.shape[-len(shape) :]) != shape:
        return False
    dtypes = {t.dtype for t in given}
    wide = torch.float32 if x.element_size() == 2 else x.dtype
    fits = all(t.shape == shape for t in given)  # torch explains what does not
    return fits and len(dtypes) < 2 and dtypes <= {x.dtype, wide}
