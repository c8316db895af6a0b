"""Fused 3x3 convolutions of a user's module; all others stay torch's."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastmeta import FOMAML, MAML, ops
from fastmeta.functional._fusion import fused
from fastmeta.models import Conv4
from fastmeta.ops import conv as conv_op
from tests.functional.fusion_cases import images, network
from tests.helpers.problems import loss, tasks

METHODS = {"maml": MAML, "fomaml": FOMAML}


@pytest.fixture
def calls():
    """Counts the convolutions that run as ops."""
    with mock.patch.object(ops, "conv3x3", wraps=ops.conv3x3) as counted:
        yield counted


def photos(n: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 4, 8, 9, dtype=dtype)


PLAIN = {
    "plain": {"padding": 1},
    "same": {"padding": "same"},
    "strided": {"padding": 1, "stride": 2},
    "without bias": {"padding": (1, 1), "stride": (2, 2), "bias": False},
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_plain_convolutions(dtype: torch.dtype, name: str, calls) -> None:
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    first = nn.Conv2d(4, 6, 3, **PLAIN[name])
    module = nn.Sequential(first, nn.Tanh(), nn.Sequential(nn.Conv2d(6, 5, 3, padding=1))).to(dtype)
    x, results = photos(dtype=dtype), []
    for run in (fused, lambda _: torch.enable_grad()):
        with run(module):
            y = module(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))])
    assert calls.call_count == 2
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_every_convolution_of_conv4(downsample: str, calls) -> None:
    model = Conv4(1, 28, 5, downsample=downsample)
    with fused(model):
        model(torch.randn(2, 1, 28, 28))
    strides = [call.kwargs["stride"] for call in calls.call_args_list]
    assert strides == [2 if downsample == "stride" else 1] * 4


# --- left to torch --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "last", "count"), [(63, [], 2), (64, [], 0), (64, [nn.ReLU()], 2)]
)
def test_wide_residual_branches(width: int, last: list[nn.Module], count: int, calls) -> None:
    convolutions = [nn.Conv2d(width, width, 3, padding=1) for _ in range(2)]
    norms = [nn.BatchNorm2d(width) for _ in range(2)]
    branch = nn.Sequential(convolutions[0], norms[0], nn.ReLU(), convolutions[1], norms[1], *last)
    with fused(branch):
        branch(torch.randn(2, width, 4, 4))
    assert calls.call_count == count


class Subclass(nn.Conv2d):
    pass


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def changed(change: Callable[[nn.Conv2d], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        convolution = nn.Conv2d(4, 6, 3, padding=1)
        change(convolution)
        return convolution

    return make


def hooked(register: str) -> Callable[[], nn.Module]:
    return changed(lambda c: getattr(c, register)(lambda *_: None))


def larger_weight(convolution: nn.Conv2d) -> None:
    convolution.weight = nn.Parameter(torch.randn(6, 4, 5, 5))


NOT_FUSED = {
    "1x1": lambda: nn.Conv2d(4, 6, 1, padding=1),
    "5x5": lambda: nn.Conv2d(4, 6, 5, padding=1),
    "3x1": lambda: nn.Conv2d(4, 6, (3, 1), padding=1),
    "no padding": lambda: nn.Conv2d(4, 6, 3),
    "valid": lambda: nn.Conv2d(4, 6, 3, padding="valid"),
    "padding 2": lambda: nn.Conv2d(4, 6, 3, padding=2),
    "uneven padding": lambda: nn.Conv2d(4, 6, 3, padding=(1, 0)),
    "stride 3": lambda: nn.Conv2d(4, 6, 3, padding=1, stride=3),
    "uneven stride": lambda: nn.Conv2d(4, 6, 3, padding=1, stride=(1, 2)),
    "dilation": lambda: nn.Conv2d(4, 6, 3, padding=1, dilation=2),
    "groups": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, padding=1),
    "forward hook": hooked("register_forward_hook"),
    "pre-hook": hooked("register_forward_pre_hook"),
    "backward hook": hooked("register_full_backward_hook"),
    "replaced forward": changed(lambda c: setattr(c, "forward", lambda x: x - 1)),
    "subclass": lambda: Subclass(4, 6, 3, padding=1),
    "parametrization": changed(
        lambda c: parametrize.register_parametrization(c, "weight", Halved())
    ),
    "weight norm": changed(lambda c: torch.nn.utils.parametrizations.weight_norm(c)),
    "larger weight": changed(larger_weight),
}


@pytest.mark.parametrize("name", NOT_FUSED)
def test_other_convolutions_are_torchs(name: str, calls) -> None:
    module = nn.Sequential(NOT_FUSED[name]()).double()
    x = photos()
    expected = module(x)
    with fused(module):
        torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    assert calls.call_count == 0


INPUTS = {
    "bfloat16": lambda: photos().bfloat16(),
    "half": lambda: photos().half(),
    "one image": lambda: photos()[0],
    "no image": lambda: photos(0),
    "meta": lambda: photos().to("meta"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_other_inputs_are_torchs(name: str, calls) -> None:
    x = INPUTS[name]()
    module = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Flatten(-3)).to(x.device, x.dtype)
    expected = module(x)
    with fused(module):
        found = module(x)
    assert calls.call_count == 0
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert found.device == expected.device
    assert x.is_meta or torch.equal(found, expected)


def test_autocast_is_not_fused(calls) -> None:
    module, x = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)), photos(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = module(x)
        with fused(module):
            found = module(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    assert calls.call_count == 0


def test_global_hooks_are_respected(calls) -> None:
    module, seen = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)).double(), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        with fused(module):
            module(photos())
    finally:
        handle.remove()
    assert nn.Conv2d in seen
    assert calls.call_count == 0


def test_compiled_modules_are_not_fused(calls) -> None:
    module = torch.compile(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)).double(), backend="eager")
    with fused(module):
        module(photos())
    assert calls.call_count == 0


ERRORS = {
    "channels": lambda c, x: (c, x[:, :3]),
    "dtype of images": lambda c, x: (c, x.float()),
    "dtype of weights": lambda c, x: (c.float(), x),
    "dtype of the bias": lambda c, x: (changed_bias(c, c.bias.float()), x),
    "size of the bias": lambda c, x: (changed_bias(c, c.bias[:5]), x),
    "dimensions": lambda c, x: (c, x[0, 0]),
}


def changed_bias(convolution: nn.Conv2d, bias: Tensor) -> nn.Conv2d:
    convolution.bias = nn.Parameter(bias.detach())
    return convolution


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_torchs(name: str, calls) -> None:
    convolution, x = ERRORS[name](nn.Conv2d(4, 6, 3, padding=1).double(), photos())
    module, messages = nn.Sequential(convolution), []
    for run in (fused, lambda _: torch.enable_grad()):
        with run(module), pytest.raises((RuntimeError, NotImplementedError)) as caught:
            module(x)
        messages.append(str(caught.value).splitlines()[0])
    assert messages[0] == messages[1]
    assert calls.call_count == 0


# --- in a learner ---------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", ["", "0.0.weight", "0.0.bias", "1.weight", "1."])
@pytest.mark.parametrize("method", METHODS)
def test_meta_gradients_with_frozen_weights(method: str, frozen: str, calls) -> None:
    module, batch = network(track_running_stats=False), tasks()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(frozen)))
    results = []
    for fuse in (True, False):
        learner = METHODS[method](module, loss, inner_lr=0.1, inner_steps=2, fuse=fuse)
        gradient, result = learner.meta_gradient(batch)
        results.append([gradient, result.query_output, learner.predict(batch)])
        assert (calls.call_count > 0) == fuse
        calls.reset_mock()
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() <= 1e-10 * expected.norm()


def test_no_gradient_is_computed_for_frozen_weights() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)).double()
    module[0].requires_grad_(False)
    with mock.patch.object(conv_op, "kernels", wraps=conv_op.kernels) as counted, fused(module):
        torch.autograd.grad(module(images()).square().sum(), list(module[1].parameters()))
    assert counted.conv_weight.default.call_count == 1
    assert counted.conv_input.default.call_count == 0
