"""Calling an ordinary module with other parameters and buffers than its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta.recompute import check_parts, recomputed

Buffers = dict[str, Tensor]


class FunctionalModule:
    """An unchanged ``nn.Module`` as a function of its trainable parameters and its buffers.

    Tied parameters count once and stay tied. Parameters with ``requires_grad=False`` keep the
    module's values. Running statistics are updated in the buffers passed, not in the module.

    Args:
        module: the module.
        autocast: the dtype of autocast in forward passes and the loss, ``torch.bfloat16`` or
            ``torch.float16``; ``None`` leaves autocast as it is around the call.
        checkpoint: compute activations again instead of keeping them, see
            :func:`fastmeta.recompute.recomputed`.

    Attributes:
        module: the module; its ``training`` flag decides how BatchNorm and dropout behave.
        names: names of the trainable parameters.
        params: the trainable parameters, in the order of ``names``.
        autocast: see above.
        checkpoint: see above.

    Raises:
        ValueError: if there is nothing to train, the parameters differ in dtype or device,
            ``autocast`` is another dtype or the parameters are not float32 for it, or no part of
            the module can be computed again.
    """

    def __init__(
        self, module: nn.Module, autocast: torch.dtype | None = None, checkpoint: bool = False
    ) -> None:
        self.module = module
        self.autocast = autocast
        self.checkpoint = checkpoint
        trainable = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        if not trainable:
            raise ValueError("the module has no parameter that requires a gradient.")
        self.names = [name for name, _ in trainable]
        self.params: list[nn.Parameter] = [param for _, param in trainable]
        kinds = {(p.dtype, p.device) for p in self.params}
        if len(kinds) > 1:
            raise ValueError(
                "the trainable parameters must have one dtype and one device, got "
                f"{', '.join(f'{d} on {v}' for d, v in sorted(kinds, key=str))}. "
                "Move or convert the module, or freeze the others with requires_grad_(False)."
            )
        if autocast is not None:
            _check_autocast(autocast, self.params[0].dtype)
        if checkpoint:
            check_parts(module)

    def __call__(self, params: Sequence[Tensor], buffers: Buffers, x: Tensor) -> Tensor:
        """The module's output for ``x`` with ``params`` (in the order of ``names``) and buffers."""
        values = {**dict(zip(self.names, params, strict=True)), **buffers}
        again = recomputed(self.module, self.running) if self.checkpoint else None
        with self._precision(), again or self.running(self.module):
            output: Tensor = functional_call(self.module, values, (x,))
        return output

    def evaluate(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        params: Sequence[Tensor],
        buffers: Buffers,
        x: Tensor,
        y: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Loss and output for ``x`` and targets ``y``."""
        with self._precision():
            output = self(params, buffers, x)
            return loss(output, y), output

    def running(self, part: nn.Module) -> AbstractContextManager[None]:
        """What the module, or a part of it, runs in; nothing here."""
        return nullcontext()

    def _precision(self) -> AbstractContextManager[None]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.params[0].device.type, self.autocast)

    def clone_buffers(self) -> Buffers:
        """A copy of the module's buffers, for one task to work on."""
        return {name: buffer.clone() for name, buffer in self.module.named_buffers()}

    @torch.no_grad()
    def merge_buffers(self, tasks: Sequence[Buffers]) -> None:
        """Writes the tasks' buffers back: the mean of floating-point ones, the largest of others.

        Every task begins with the module's running statistics; their mean over the meta-batch is
        what the module has when it is used without adaptation statistics (``eval()``).
        """
        for name, buffer in self.module.named_buffers():
            stacked = torch.stack([task[name] for task in tasks])
            merged = stacked.mean(0) if buffer.is_floating_point() else stacked.amax(0)
            # The mean of equal numbers is not always that number: constants must not drift.
            buffer.copy_(torch.where((stacked == buffer).all(0), buffer, merged))


def _check_autocast(autocast: torch.dtype, params: torch.dtype) -> None:
    if autocast not in (torch.bfloat16, torch.float16):
        raise ValueError(f"autocast must be torch.bfloat16 or torch.float16, got {autocast}.")
    if params != torch.float32:
        raise ValueError(
            f"autocast={autocast} needs float32 parameters, which it keeps; got {params}. "
            "Convert the module with .float(), or leave autocast out."
        )
