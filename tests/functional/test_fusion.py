"""Fused blocks of a user's module: equal results and statistics, no side effects."""

from __future__ import annotations

import copy
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from fastmeta import FOMAML, GSL, MAML, TaskBatch, ops
from fastmeta.functional import FunctionalModule
from fastmeta.functional._fusion import FusedModule, fused
from tests.functional.fusion_cases import images, network
from tests.helpers.problems import loss, tasks

METHODS = {"maml": MAML, "fomaml": FOMAML, "gsl": GSL}
NORMS = {
    "batch statistics": {"track_running_stats": False},
    "running statistics": {},
    "cumulative": {"momentum": None},
    "slow": {"momentum": 0.01, "eps": 1e-2},
}


@pytest.fixture
def calls():
    """Counts the calls of fused blocks."""
    with mock.patch.object(ops, "batch_norm_relu", wraps=ops.batch_norm_relu) as counted:
        yield counted


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", METHODS)
def test_meta_gradients_and_statistics_agree(method: str, norm: str, calls) -> None:
    module, batch = network(**NORMS[norm]), tasks()
    results = []
    for fuse in (True, False):
        own = copy.deepcopy(module)
        learner = METHODS[method](own, loss, inner_lr=0.1, inner_steps=3, fuse=fuse)
        gradient, result = learner.meta_gradient(batch)
        results.append([gradient, result.query_output, learner.predict(batch), *own.buffers()])
        assert (calls.call_count > 0) == fuse
        calls.reset_mock()
    for found, expected in zip(*results, strict=True):
        if found.dtype == torch.int64:
            assert torch.equal(found, expected)
        else:
            assert (found - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("norm", NORMS)
def test_statistics_over_many_calls(norm: str) -> None:
    ours, theirs = network(**NORMS[norm]), None
    theirs = copy.deepcopy(ours)
    for n in (7, 2, 5):
        x = images(n)
        with fused(ours):
            found = ours(x)
        torch.testing.assert_close(found, theirs(x), rtol=1e-12, atol=1e-12)
    for found, expected in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_every_block_of_conv4_is_fused(calls) -> None:
    from fastmeta.models import Conv4

    for downsample in ("pool", "stride"):
        model = Conv4(1, 28, 5, downsample=downsample)
        with fused(model):
            model(torch.randn(2, 1, 28, 28))
        assert calls.call_count == 4
        assert all(call.kwargs["pool"] == (downsample == "pool") for call in calls.call_args_list)
        calls.reset_mock()


def eval_with_statistics(module: nn.Module) -> Tensor:
    module.eval()
    return images()


def hooked(index: int, register: str) -> Callable[[nn.Module], Tensor]:
    def change(module: nn.Module) -> Tensor:
        module[3].inplace = False  # torch allows no backward hook before an in-place op
        for block in (module[0][1:], module[2:4]):
            getattr(block[min(index, len(block) - 1)], register)(lambda *_: None)
        return images()

    return change


def replaced_forward(module: nn.Module) -> Tensor:
    for norm in (module[0][1], module[2]):
        norm.forward = type(norm).forward.__get__(norm)
    return images()


class Subclass(nn.BatchNorm2d):
    pass


def subclass(module: nn.Module) -> Tensor:
    for norm in (module[0][1], module[2]):
        norm.__class__ = Subclass
    return images()


def bfloat16(module: nn.Module) -> Tensor:
    module.bfloat16()
    return images(dtype=torch.bfloat16)


NOT_FUSED = {
    "eval": eval_with_statistics,
    "forward hook": hooked(0, "register_forward_hook"),
    "pre-hook of the activation": hooked(1, "register_forward_pre_hook"),
    "backward hook": hooked(0, "register_full_backward_hook"),
    "replaced forward": replaced_forward,
    "subclass": subclass,
    "bfloat16": bfloat16,
}


@pytest.mark.parametrize("name", NOT_FUSED)
def test_unsupported_modules_are_not_fused(name: str, calls) -> None:
    module = network()
    x = NOT_FUSED[name](module)
    expected = copy.deepcopy(module)(x)
    with fused(module):
        found = module(x)
    if x.dtype == torch.float64:  # but for the convolutions' rounding
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    else:
        assert torch.equal(found, expected)
    assert calls.call_count == 0


def test_without_affine_transform(calls) -> None:
    module = network(affine=False)
    with fused(module):
        module(images())
    assert calls.call_count == 0


def test_autocast_is_not_fused(calls) -> None:
    module = network().float()
    with fused(module), torch.autocast("cpu", dtype=torch.bfloat16):
        module(images(dtype=torch.float32))
    assert calls.call_count == 0


def test_global_hooks_are_respected(calls) -> None:
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        with fused(module := network()):
            module(images())
    finally:
        handle.remove()
    assert nn.BatchNorm2d in seen
    assert calls.call_count == 0


def test_a_hook_of_the_pooling_layer_is_respected(calls) -> None:
    module, seen = network(), []
    module[0][3].register_forward_hook(lambda m, x, y: seen.append(x[0].shape))
    expected = copy.deepcopy(module)(x := images())
    seen.clear()
    with fused(module):
        torch.testing.assert_close(module(x), expected)
    assert seen == [(7, 4, 4, 4)]
    assert [call.kwargs["pool"] for call in calls.call_args_list] == [False, False]


class Peeks(nn.Module):
    """Takes the outputs of single modules of a Sequential, and uses one activation twice."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), act)
        self.other = nn.Sequential(nn.Conv2d(1, 3, 3), act)

    def forward(self, x: Tensor) -> Tensor:
        before = self.body[1](self.body[0](x))
        return torch.stack([before, self.body(x), self.other(x)])


def test_modules_called_one_by_one(calls) -> None:
    module = Peeks()
    unfused = copy.deepcopy(module)
    with fused(module):
        found = module(x := images(dtype=torch.float32))
    torch.testing.assert_close(found, unfused(x), rtol=1e-5, atol=1e-5)
    assert (found < 0).any()
    assert calls.call_count == 1


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ArithmeticError("as planned")


def attributes(module: nn.Module) -> list[tuple[str, ...]]:
    return [tuple(vars(m)) for m in module.modules()]


def test_the_module_is_restored() -> None:
    module = network()
    before = attributes(module)
    with fused(module), fused(module):  # nested contexts
        module(images())
        assert "forward" in vars(module)
    assert attributes(module) == before
    module.append(Fails())
    before = attributes(module)
    with pytest.raises(ArithmeticError, match="as planned"), fused(module):
        module(images())
    assert attributes(module) == before
    copy.deepcopy(module)


def test_one_value_per_channel_raises_torchs_error() -> None:
    module = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())
    with fused(module), pytest.raises(ValueError, match="more than 1 value per channel"):
        module(torch.randn(1, 2, 1, 1))


def test_too_small_images_raise_torchs_error() -> None:
    module = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2))
    with fused(module), pytest.raises(RuntimeError, match="too small"):
        module(torch.randn(3, 2, 1, 1))


def test_compiled_modules_are_not_fused(calls) -> None:
    module = torch.compile(network(track_running_stats=False), backend="eager")
    with fused(module):
        assert "forward" not in vars(module._orig_mod)
    inner = network(track_running_stats=False)
    inner[0].compile(backend="eager")
    with fused(inner):
        inner(images())
    assert calls.call_count == 0


@pytest.mark.parametrize("track", [False, True])
def test_under_function_transforms(track: bool, calls) -> None:
    """Running statistics under a transform are left to torch, which knows what it may change."""
    module, x = network(track_running_stats=track), images()
    results = []
    for model in (FusedModule(module), FunctionalModule(module)):

        def squares(params, buffers, model=model):
            return model(params, buffers, x).square().sum(), buffers

        params = [p.detach() for p in model.params]
        results.append(torch.func.grad(squares, has_aux=True)(params, model.clone_buffers()))
    torch.testing.assert_close(*results)
    assert (calls.call_count > 0) != track


def test_fuse_option() -> None:
    module = network()
    for learner in (MAML, FOMAML, GSL):
        assert type(learner(module, loss, inner_lr=0.1)._built.model) is FusedModule
        plain = learner(module, loss, inner_lr=0.1, fuse=False)
        assert type(plain._built.model) is FunctionalModule


def test_a_training_step_restores_the_module() -> None:
    module, batch = network(), tasks()
    before = attributes(module)
    learner = MAML(module, loss, inner_lr=0.1)
    learner.step(batch)
    bad = TaskBatch(batch.support_x[..., :3], batch.support_y, batch.query_x, batch.query_y)
    with pytest.raises(RuntimeError):
        learner.step(bad)
    assert attributes(module) == before
