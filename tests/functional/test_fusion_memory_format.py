"""Memory format of images in a user's modules and after fused modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from fastmeta import ops
from fastmeta.functional import FunctionalModule
from fastmeta.functional._fusion import FusedModule, fused


class View(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1)  # not for images in channels-last order


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Usual(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous()


def conv(channels: int, out: int = 4) -> nn.Module:
    return nn.Conv2d(channels, out, 3, padding=1)


def block(channels: int, *rest: nn.Module) -> list[nn.Module]:
    """A torch convolution followed by a fused block."""
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    return [nn.Conv2d(channels, 4, 3), norm, nn.ReLU(), *rest]


def chain(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)


# Chains of modules with a user's among them, for images of so many channels.
CHAINS: dict[str, Callable[[int], nn.Module]] = {
    "block, view": lambda c: chain(*block(c), View()),
    "pooled block, view": lambda c: chain(*block(c, nn.MaxPool2d(2)), View()),
    "convolution, view": lambda c: chain(conv(c), View()),
    "one channel, view": lambda c: chain(conv(c, 1), View()),
    "convolution and block, view": lambda c: chain(conv(c), nn.BatchNorm2d(4), nn.ReLU(), View()),
    "torch's in between": lambda c: chain(conv(c), nn.Tanh(), nn.AvgPool2d(2), View()),
    "ours again": lambda c: chain(conv(c), Identity(), conv(4), Identity(), View()),
    "inner chain": lambda c: chain(chain(conv(c)), chain(*block(4)), View()),
    "outer chain": lambda c: chain(chain(conv(c), Identity()), nn.Tanh(), View()),
    "after a user's": lambda c: chain(Identity(), conv(c), chain(View())),
    "made usual": lambda c: chain(Usual(), conv(c), View()),
}


def usual(x: Tensor) -> Tensor:
    return x.contiguous()


def inner(x: Tensor) -> Tensor:
    """A crop of larger images."""
    return nn.functional.pad(x, (1, 2, 3, 4))[..., 3:-4, 1:-2]


@pytest.mark.parametrize("order", [usual, inner])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CHAINS)
def test_a_view_in_a_user_module(
    name: str, channels: int, order: Callable[[Tensor], Tensor]
) -> None:
    module = CHAINS[name](channels).double()
    x = order(torch.randn(5, channels, 8, 9).double())
    expected = copy.deepcopy(module)(x)
    with fused(module):
        found = module(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_view_after_a_user_module_that_makes_images_contiguous() -> None:
    module = chain(Usual(), conv(3), View()).double()
    x = torch.randn(5, 3, 8, 9).double().to(memory_format=torch.channels_last)
    expected = copy.deepcopy(module)(x)
    with fused(module):
        torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_see_contiguous_images(register: str) -> None:
    module = chain(*block(3), nn.Conv2d(4, 4, 5), conv(4), nn.Tanh()).double()
    seen = []
    for i in (0, 3, 5):
        getattr(module[i], register)(lambda m, x, *y: seen.append((y or x)[0].view(5, -1)))
    with fused(module):
        module(torch.randn(5, 3, 8, 9).double())
    assert len(seen) == 3


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_within_torchs_modules(channels: int) -> None:
    """Nothing is copied between two ops, and the module's output is contiguous as usual."""
    module = chain(*block(channels), chain(conv(4), nn.Tanh()), *block(4)).double()
    x = torch.randn(5, channels, 8, 9).double()
    expected = copy.deepcopy(module)(x)
    convolve, normalise = ops.conv3x3, ops.batch_norm_relu
    with (
        mock.patch.object(ops, "conv3x3", wraps=convolve) as convolved,
        mock.patch.object(ops, "batch_norm_relu", wraps=normalise) as normalised,
        fused(module),
    ):
        found = module(x)
        last = module(x.reshape(5, 8, 9, channels).permute(0, 3, 1, 2))
    calls = [*convolved.call_args_list, *normalised.call_args_list]
    assert len(calls) == 6
    assert all(call.args[0].stride(1) == 1 for call in calls)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert last.is_contiguous(memory_format=torch.channels_last)


# --- under a transform ----------------------------------------------------------------------------


class Ends(nn.Module):
    """Convolutions and a block, followed by a view, for images of this many channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = chain(conv(channels), *block(4), View())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("views", [False, True])
def test_under_vmap_and_grad(channels: int, views: bool) -> None:
    module = (Ends(channels) if views else chain(conv(channels), *block(4), conv(4))).double()
    x = torch.randn(3, 5, channels, 6, 7).double()
    results = []
    for model in (FusedModule(module), FunctionalModule(module)):

        def squares(params: list[Tensor], x: Tensor, model: FunctionalModule = model) -> Tensor:
            return model(params, {}, x).square().sum()

        own = [p.detach() for p in model.params]
        tasks = [torch.stack([p, 2 * p, p.sin()]) for p in own]
        results.append(
            [
                torch.vmap(lambda p, x, model=model: model(p, {}, x))(tasks, x),
                torch.vmap(lambda x, model=model, own=own: model(own, {}, x))(x),
                torch.vmap(squares, in_dims=(0, None))(tasks, x[0]),
                torch.func.grad(squares)(own, x[0]),
                torch.vmap(torch.func.grad(squares))(tasks, x),
                torch.vmap(torch.func.grad(squares), in_dims=(None, 1))(own, x.movedim(0, 1)),
                torch.func.jvp(lambda p, f=squares: f(p, x[0]), (own,), (own,)),
            ]
        )
    torch.testing.assert_close(*results)
