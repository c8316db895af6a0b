"""Outputs of modules that are not plain tensors, such as those of Hugging Face models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def model_loss(output: Any, targets: Any = None) -> Tensor:
    """The loss that the module has computed itself, as the `loss` of a learner.

    Hugging Face models compute it from `labels` among their inputs, which are those of each support
    and query set; the targets of the meta-batch are not used and may be `None`:

    ```python
    x = {"input_ids": ids, "labels": ids}  # (tasks, examples, tokens)
    batch = fastmeta.TaskBatch(x, None, x, None)
    learner = fastmeta.MAML(model, fastmeta.model_loss, inner_lr=0.01)
    ```

    Args:
        output: of the module: an object or mapping with a `loss`, or a scalar, the loss itself.
        targets: not used.

    Raises:
        TypeError: if the output has no loss.
    """
    loss = output if isinstance(output, Tensor) and output.dim() == 0 else _entry(output, "loss")
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"the module returned a {type(output).__name__} without a loss; expected one, as "
            "Hugging Face models compute it from labels. Add 'labels' to support_x and query_x, or "
            "give the learner a loss of outputs and targets."
        )
    return loss


def prediction(output: Any) -> Tensor:
    """The tensor among a module's outputs that results and metrics hold.

    The output itself if it is a tensor, else its `logits`; without these the first tensor in it
    that is not its `loss`; else the loss.

    Raises:
        TypeError: if it contains no tensor.
    """
    if isinstance(output, Tensor):
        return output
    named = dict(_entries(output))
    loss = named.pop("loss", None)
    for value in (named.get("logits"), *named.values(), loss):
        if isinstance(value, Tensor):
            return value
    raise TypeError(
        f"the module returned a {type(output).__name__}, in which there is no tensor; expected a "
        "tensor, or a mapping, dataclass, tuple or object with one."
    )


def _entries(output: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, (tuple, list)) and not hasattr(output, "_fields"):
        yield from enumerate(output)
    elif hasattr(output, "_asdict"):  # a named tuple
        yield from output._asdict().items()
    else:
        yield from getattr(output, "__dict__", {}).items()


def _entry(output: Any, name: str) -> Any:
    return None if isinstance(output, Tensor) else dict(_entries(output)).get(name)
