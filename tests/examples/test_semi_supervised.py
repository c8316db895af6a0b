"""The meta-gradient of pseudo-labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad

import fastmeta
from examples import semi_supervised as example
from fastmeta.adaptation import SGD

Params = dict[str, Tensor]
LR = 0.01


@pytest.fixture
def params() -> Params:
    parts = example.MODEL.state_dict()
    return {name: (0.05 * torch.randn_like(p)).double() for name, p in parts.items()}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 784, dtype=torch.float64)


@pytest.fixture
def labelled() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 784, dtype=torch.float64), torch.randint(10, (4,))


def test_central_difference(
    params: Params, images: Tensor, labelled: tuple[Tensor, Tensor]
) -> None:
    """The form of the authors, whose step of 0.01 / |g| would cross kinks of the network here."""
    gradient = grad(example.labelled_loss)(params, *labelled)
    e = 1e-7 / torch.cat([g.flatten() for g in gradient.values()]).norm()
    ahead, behind = (
        example.predictions({n: p + s * e * gradient[n] for n, p in params.items()}, images)
        for s in (1, -1)
    )
    expected = example.predictions(params, images) - LR * (ahead - behind) / e
    expected = F.normalize(expected.relu(), p=1, dim=1)
    found = example.moved_labels(params, images, labelled, LR)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - example.predictions(params, images)).abs().max() > 1e-3


def test_metagradient(params: Params, images: Tensor, labelled: tuple[Tensor, Tensor]) -> None:
    """The labels are meta-parameters of one step; its loss is a mean over images."""
    labels = example.predictions(params, images).requires_grad_()
    found = fastmeta.metagradient(
        example.consistency, lambda params, _: example.labelled_loss(params, *labelled),
        params, labels, [images], optimizer=SGD(lr=LR),
    )  # fmt: skip
    expected = F.normalize((labels - len(images) * found.meta).relu(), p=1, dim=1)
    moved = example.moved_labels(params, images, labelled, LR)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)


def test_labels_are_distributions(
    params: Params, images: Tensor, labelled: tuple[Tensor, Tensor]
) -> None:
    moved = example.moved_labels(params, images, labelled, lr=100.0)
    assert (moved == 0).any()
    assert (moved >= 0).all()
    torch.testing.assert_close(moved.sum(1), torch.ones_like(moved[:, 0]))


def test_no_gradient_moves_nothing(params: Params, images: Tensor) -> None:
    """Labels of which the network is certain."""
    x = torch.randn(1, 784, dtype=torch.float64)
    params = {**params, "6.bias": 1000 * torch.eye(10, dtype=torch.float64)[3]}
    moved = example.moved_labels(params, images, (x, torch.tensor([3])), lr=1.0)
    torch.testing.assert_close(moved, example.predictions(params, images))
    steps = grad(example.consistency)(params, moved, images)
    assert all(not step.any() for step in steps.values())


def test_a_step_towards_them_lowers_the_loss(
    params: Params, images: Tensor, labelled: tuple[Tensor, Tensor]
) -> None:
    moved = example.moved_labels(params, images, labelled, lr=1e-2)
    step = grad(example.consistency)(params, moved, images)
    ahead = {name: p - 1e-2 * step[name] for name, p in params.items()}
    before, after = (example.labelled_loss(p, *labelled) for p in (params, ahead))
    assert after < before
