"""clone() and adapt() against derivatives written out, and their side effects."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from fastmeta.compat import learn2learn as l2l


class Bowl(nn.Module):
    """``a / 2 * p^2``, whose derivatives are known in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.randn(3, dtype=torch.float64))

    def forward(self, a: Tensor) -> Tensor:
        return (a / 2 * self.p**2).sum()


@pytest.fixture
def bowl() -> Bowl:
    return Bowl()


@pytest.fixture
def a() -> Tensor:
    return torch.rand(3, dtype=torch.float64) + 0.5


@pytest.fixture
def b() -> Tensor:
    return torch.rand(3, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("where", ["wrapper", "clone", "adapt"])
@pytest.mark.parametrize("first_order", [False, True])
def test_maml(bowl: Bowl, a: Tensor, b: Tensor, first_order: bool, where: str) -> None:
    asked = {where: {"first_order": first_order}}
    before = bowl.p.detach().clone()
    maml = l2l.algorithms.MAML(bowl, lr=0.3, **asked.get("wrapper", {"first_order": True}))
    learner = maml.clone(**asked.get("clone", {}))
    for _ in range(2):
        learner.adapt(learner(a), **asked.get("adapt", {}))
    learner(b).backward()
    shrunk = (1 - 0.3 * a) ** 2
    assert_close(learner.p, before * shrunk)
    assert_close(bowl.p.grad, b * before * shrunk * (1 if first_order else shrunk))
    assert_close(bowl.p.detach(), before)


@pytest.mark.parametrize("first_order", [False, True])
def test_meta_sgd(bowl: Bowl, a: Tensor, b: Tensor, first_order: bool) -> None:
    p = bowl.p.detach().clone()
    meta = l2l.algorithms.MetaSGD(bowl, lr=0.3, first_order=first_order)
    learner = meta.clone()
    learner.adapt(learner(a))
    learner(b).backward()
    fast = p * (1 - 0.3 * a)
    assert_close(bowl.p.grad, b * fast * (1 if first_order else 1 - 0.3 * a))
    assert_close(meta.lrs[0].grad, -b * fast * a * p)


def test_meta_sgd_keeps_tied_weights_tied() -> None:
    a, b = (nn.Linear(3, 3, bias=False) for _ in range(2))
    b.weight = a.weight
    learner = l2l.algorithms.MetaSGD(nn.Sequential(a, nn.Tanh(), b), lr=0.1).clone()
    for _ in range(2):
        learner.adapt(learner(torch.randn(4, 3)).square().sum())
    assert learner.module[0].weight is learner.module[2].weight


def test_gbml_with_a_scale_is_meta_sgd(bowl: Bowl, a: Tensor, b: Tensor) -> None:
    gbml = l2l.algorithms.GBML(bowl, lambda p: l2l.nn.Scale(3, alpha=0.5).double(), lr=0.6)
    meta = l2l.algorithms.MetaSGD(copy.deepcopy(bowl), lr=0.3)
    for wrapper in (gbml, meta):
        learner = wrapper.clone()
        learner.adapt(learner(a))
        learner(b).backward()
    assert_close(bowl.p.grad, meta.p.grad)
    (alpha,) = gbml.compute_update.parameters()
    assert_close(alpha.grad, 0.6 * meta.lrs[0].grad)


def test_gbml_without_a_transform_is_maml(bowl: Bowl, a: Tensor) -> None:
    learner = l2l.algorithms.GBML(bowl, lambda p: None, lr=0.3).clone(first_order=True)
    learner.adapt(learner(a))
    assert_close(learner.module.p, bowl.p * (1 - 0.3 * a))


def test_a_transform_is_a_module(bowl: Bowl) -> None:
    with pytest.raises(TypeError, match=r"nn\.Module or None; got float"):
        l2l.algorithms.GBML(bowl, lambda p: 0.5)


def test_meta_curvature() -> None:
    param, grad = torch.randn(2, 4, 3, 5, 2, dtype=torch.float64)
    module = l2l.optim.MetaCurvatureTransform(param, lr=0.5)
    for p in module.parameters():
        nn.init.normal_(p)
    into, out, filters = module.mc_in, module.mc_out, module.mc_f
    expected = torch.einsum("pi,iof,oq,gf->pqg", into, grad.flatten(2), out, filters)
    assert_close(module(grad), 0.5 * expected.view_as(grad))
    with pytest.raises(ValueError, match=r"1, 2 or 4 dimensions; got \(2, 2, 2\)"):
        l2l.optim.MetaCurvatureTransform(torch.ones(2, 2, 2))


class Partial(nn.Module):
    """One parameter is used, one is unused, one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self) -> Tensor:
        return (self.used * self.frozen).square().sum()


@pytest.mark.parametrize("first_order", [False, True])
def test_unused_and_frozen_parameters(first_order: bool) -> None:
    maml = l2l.algorithms.MAML(Partial(), lr=0.25, first_order=first_order)
    for options in ({}, {"allow_unused": True}, {"allow_nograd": True, "allow_unused": False}):
        learner = maml.clone()
        with pytest.raises(RuntimeError, match=r"(?s)allow_nograd=True.*allow_unused=True"):
            learner.adapt(learner(), **options)
    learner = maml.clone(allow_nograd=True, allow_unused=True)
    learner.adapt(learner())
    assert learner.used.tolist() == [0.5, 0.5]
    assert learner.unused.tolist() == learner.frozen.tolist() == [1, 1]
    assert l2l.algorithms.MAML(Partial(), lr=1.0, allow_nograd=True).allow_unused


def test_running_statistics_are_shared_with_the_module() -> None:
    model = nn.BatchNorm1d(2)
    clone = l2l.algorithms.MAML(model, lr=0.1).clone()
    clone(torch.randn(8, 2) + 5)
    assert model.running_mean.min() > 0
    assert clone.running_mean is model.running_mean


def test_clone_and_detach_of_tensors_that_require_gradients() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("scale", torch.ones(2, requires_grad=True))
    model.register_buffer("nothing", None)
    clone = l2l.clone_module(model)
    assert clone.scale is not model.scale
    clone.scale.sum().backward()
    assert model.scale.grad.tolist() == [1, 1]
    l2l.detach_module(clone, keep_requires_grad=True)
    assert clone.weight.is_leaf
    assert clone.weight.requires_grad
    l2l.detach_module(clone)
    assert not any(t.requires_grad for t in (*clone.parameters(), *clone.buffers()))


def test_updates_may_be_set_as_attributes() -> None:
    model = nn.Linear(2, 1)
    clone = l2l.clone_module(model)
    clone.weight.update = torch.ones(1, 2)
    assert l2l.update_module(clone) is clone
    assert_close(clone.weight, model.weight + 1)
    assert_close(clone.bias, model.bias)
    again = clone.weight
    l2l.update_module(clone)
    assert clone.weight is again


def test_the_number_of_updates_must_match() -> None:
    with pytest.raises(ValueError, match="each of the 2 parameters; got 1"):
        l2l.update_module(nn.Linear(2, 1), [torch.ones(1, 2)])


def test_a_wrapper_has_the_modules_attributes() -> None:
    maml = l2l.algorithms.MAML(nn.Linear(2, 1), lr=0.1)
    assert maml.out_features == 1
    assert list(maml.state_dict()) == ["module.weight", "module.bias"]
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        maml.absent  # noqa: B018
    for copied in (copy.deepcopy(maml), pickle.loads(pickle.dumps(maml))):
        assert_close(copied.state_dict(), maml.state_dict())
        assert copied.lr == 0.1


def test_small_helpers() -> None:
    assert l2l.accuracy(torch.tensor([[0.0, 1], [1, 0], [0, 1]]), torch.tensor([1, 1, 1])) == 2 / 3
    x = torch.randn(3, requires_grad=True)
    l2l.magic_box(x).sum().backward()
    assert x.grad.tolist() == [1, 1, 1]
    assert l2l.magic_box(2) == 2
    (y,), z = l2l.clone_parameters([x]), l2l.clone_named_parameters({"x": x})["x"]
    assert y.grad_fn is not None
    assert z.grad_fn is not None
    model = l2l.nn.freeze(nn.Linear(1, 1))
    assert not model.weight.requires_grad
    assert l2l.nn.unfreeze(model).weight.requires_grad


@pytest.mark.parametrize(
    ("module", "name", "advice"),
    [
        ("fastmeta.compat.learn2learn", "gym", "Gymnasium"),
        ("fastmeta.compat.learn2learn.algorithms", "LightningMAML", "MetaLearner"),
        ("fastmeta.compat.learn2learn.optim", "KroneckerTransform", "your module"),
        ("fastmeta.compat.learn2learn.vision.models", "ResNet12", r"fastmeta\.models\.ResNet12"),
        ("fastmeta.compat.higher", "register_optim", "SGD, Adam or AdamW"),
    ],
)
def test_missing_names_suggest_a_replacement(module: str, name: str, advice: str) -> None:
    with pytest.raises(ImportError, match=rf"has no {name}: .*{advice}"):
        exec(f"from {module} import {name}")


def test_unknown_names_raise_attribute_errors() -> None:
    assert not hasattr(l2l, "absent")
