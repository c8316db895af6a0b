"""Compiled ops for convolutions and BatchNorm2d blocks within an `nn.Sequential`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from fastmeta.functional._calls import compiled_calls, compiled_loss
from fastmeta.functional._checkpointing import ForwardPlan
from fastmeta.functional._fusion_steps import FUSIBLE, Step, at_inner_step, find_steps, is_image
from fastmeta.functional._inspection import globally_hooked, is_compiled, is_plain
from fastmeta.functional.module import FunctionalModule, Loss
from fastmeta.models import PerStepBatchNorm2d


class FusedModule(FunctionalModule):
    """A `FunctionalModule` whose blocks run as compiled ops.

    In every `nn.Sequential` of the module, two things run as ops wherever these compute the same
    up to rounding: on float32 or float64 tensors, without autocast and hooks.

    - `Conv2d` with 3x3 kernels, `padding=1` and stride 1 or 2, without dilation and groups and
      not too wide, as [`fastmeta.ops.conv3x3`][]; on the CPU. Not in residual branches (a
      `Sequential` that ends in BatchNorm) of 64 channels or more, all of which torch runs.
    - A block of `BatchNorm2d` directly followed by `ReLU`, and by `MaxPool2d(2)` if there is
      one, as [`fastmeta.ops.batch_norm_relu`][]: with batch statistics (running statistics are
      updated as torch does) and an affine transform; on the CPU or (if the CUDA kernels are built)
      on a GPU. `models.PerStepBatchNorm2d` is the BatchNorm2d of the inner step.

    Where second derivatives are taken, calls of these functions of `torch.nn.functional` anywhere
    in the module (those of torch's own modules and of transformers' models among them) and in the
    loss run as ops: on the CPU, under autocast, too. What an op does not take goes to torch.

    - `scaled_dot_product_attention` as [`fastmeta.ops.attention`][], without dropout: torch's fused
      attention has no second derivatives.
      [`watch_attention`][fastmeta.functional.watch_attention] lists the calls.
    - `layer_norm`, `rms_norm`, `gelu` and `silu` as the ops of these names: torch's second
      derivatives are compositions, and those of `silu` have no forward mode.
    - `cross_entropy` and `linear_cross_entropy` with class indices as the ops of these names: the
      first one holds no probabilities, the second one no logits.

    Everything else runs unchanged. Inside a `Sequential` of torch's own modules without hooks,
    images are in channels-last order, in which these ops work and the CPU's other convolutions are
    faster; a user's module or hook, and what follows the module, gets them in the memory order that
    torch would leave them in. The module is modified during a call only, so several threads cannot
    call one module at the same time.
    """

    @override
    def _plan_for(self, part: nn.Module) -> ForwardPlan:
        return FusionPlan(part).applied

    @override
    def _computed(self, loss: Loss) -> Loss:
        return compiled_loss(loss)


def fused(module: nn.Module) -> AbstractContextManager[None]:
    """Runs blocks and convolutions of `module` as compiled ops (see `FusedModule`)."""
    return FusionPlan(module).applied()


class FusionPlan:
    """The chains of a module in which ops run, found at the first forward pass of many.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._chains: list[_Chain] | None = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the chains other forwards in this context; contexts of one module nest."""
        with compiled_calls(), self._chained():
            yield

    @contextmanager
    def _chained(self) -> Iterator[None]:
        if globally_hooked():
            yield
            return
        if self._chains is None:
            self._chains = _find_chains(self._module)
        chains = [chain for chain in self._chains if "forward" not in vars(chain.module)]
        for chain in chains:
            chain.module.forward = chain.run
        try:
            yield
        finally:
            for chain in chains:
                del chain.module.forward


class _Chain:
    """An `nn.Sequential` that runs its steps as compiled ops.

    Args:
        module: the `nn.Sequential`.
        any_order: whether all of it is torch's own, which takes images in any memory order; users'
            modules and hooks may `view` them in the contiguous order.
    """

    def __init__(self, module: Any, any_order: bool) -> None:
        self.module = module
        self.any_order = any_order
        self._found: dict[tuple[Any, ...], list[Step]] = {}

    def run(self, input: Any) -> Any:
        """`nn.Sequential.forward` with compiled ops, if possible in channels-last order."""
        x = input
        # Whether x is in channels-last order only here, and torch would have left it contiguous.
        restore = self.any_order and is_image(x) and _channels_first(x)
        if restore:
            x = _channels_last(x)
        for step in self.steps():
            if step.fits(x):
                restore = restore or _channels_first(x)
                x = step.run(x)
                continue
            for module in step.modules:
                if restore and not self.any_order:
                    x, restore = x.contiguous(), False
                x = module(x)
        return x.contiguous() if restore and isinstance(x, Tensor) else x

    def steps(self) -> list[Step]:
        """The steps for the present modules, which may differ from call to call.

        The prefix cache takes some out, the inner step selects a BatchNorm, hooks and the training
        mode change: the steps of each state are found once.
        """
        modules = list(self.module)
        if globally_hooked():
            return [Step(modules)]
        modules = at_inner_step(modules)
        state = tuple([(m, m.training, is_plain(m)) if type(m) in FUSIBLE else m for m in modules])
        steps = self._found.get(state)
        if steps is None:
            steps = self._found[state] = find_steps(modules)
        return steps


def _find_chains(module: nn.Module) -> list[_Chain]:
    """The plain `nn.Sequential` with blocks or convolutions in them, perhaps further down."""
    modules = list(module.modules())
    if any(map(is_compiled, modules)):
        return []
    chains: dict[Any, _Chain] = {}
    torchs: set[Any] = set()  # torch's own modules, of torch's own parts, without hooks
    for module in reversed(modules):  # parts come before their whole
        parts = list(module._modules.values())
        known = type(module).__module__.startswith("torch.nn.") or (
            type(module) is PerStepBatchNorm2d
        )
        if known and is_plain(module) and torchs.issuperset(parts):
            torchs.add(module)
        if type(module).forward is not nn.Sequential.forward or "forward" in vars(module):
            continue
        chain = _Chain(module, any_order=module in torchs)
        if not chains.keys().isdisjoint(parts) or _runs_ops(chain.steps()):
            chains[module] = chain
    return list(chains.values())


def _runs_ops(steps: Sequence[Step]) -> bool:
    return any(type(step) is not Step for step in steps)


def _channels_first(x: Tensor) -> bool:
    return x.stride(1) != 1


def _channels_last(x: Tensor) -> Tensor:
    if x.shape[1] > 1:
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # also under ``vmap``
    # One channel is in both orders; only the strides tell torch's convolutions which is meant.
    n, _, height, width = x.shape
    return x.reshape(n, height, width, 1).permute(0, 3, 1, 2)
