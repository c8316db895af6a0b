"""Aggregations against TorchJD, to the precision of its solvers."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.aggregation.jacobians import direction, jacobians, weights

torchjd = pytest.importorskip("torchjd.aggregation", reason="needs torchjd: pip install torchjd")
linalg = pytest.importorskip("torchjd.linalg")
few = settings(max_examples=30)
fewer = settings(few, max_examples=15)  # a cvxpy programme takes 10 ms
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def needs(module: str) -> pytest.MarkDecorator:
    """Skips a test without an optional solver of TorchJD."""
    return pytest.mark.skipif(find_spec(module) is None, reason=f"needs {module}")


@pytest.mark.parametrize(("name", "rival"), [("imtl-g", "IMTLG"), ("aligned-mtl", "AlignedMTL")])
@few
@given(jacobians())
def test_closed_forms(name: str, rival: str, gradients: Tensor) -> None:
    expected = getattr(torchjd, rival)()(gradients)
    # IMTL-G divides by a sum that may nearly vanish.
    tolerance = 1e-5 * weights(name, gradients).norm() * gradients.norm()
    assert (direction(name, gradients) - expected).norm() <= tolerance


@few
@given(jacobians(max_tasks=2))  # of two, the random order does not matter
def test_pcgrad(gradients: Tensor) -> None:
    expected = torchjd.PCGrad()(gradients) / len(gradients)  # our mean is a sum there
    torch.testing.assert_close(direction("pcgrad", gradients), expected, **CLOSE)


@few
@given(jacobians())
def test_mgda(gradients: Tensor) -> None:
    d, theirs = direction("mgda", gradients), torchjd.MGDA(epsilon=1e-5, max_iters=300)(gradients)
    # Of a convex set, d is nearest to 0: by that much longer is any other point at its distance.
    assert (d - theirs).square().sum() <= theirs @ theirs - d @ d + 1e-6 * gradients.norm() ** 2
    assert theirs @ theirs - d @ d <= 0.05 * gradients.norm() ** 2


@needs("qpsolvers")
@few
@given(jacobians())
def test_upgrad(gradients: Tensor) -> None:
    projector = linalg.QuadprogProjector(norm_eps=0.0, reg_eps=0.0)
    expected = torchjd.UPGrad(projector=projector)(gradients)
    torch.testing.assert_close(direction("upgrad", gradients), expected, **CLOSE)


@needs("cvxpy")
@fewer
@given(jacobians(), st.floats(0.05, 0.9))
def test_cagrad(gradients: Tensor, c: float) -> None:
    theirs, d = torchjd.CAGrad(c, norm_eps=0.0)(gradients), direction("cagrad", gradients, c=c)
    assert (d - theirs).norm() <= 1e-3 * gradients.norm()  # their solver stops earlier
    assert (gradients @ d).min() >= (gradients @ theirs).min() - 1e-6 * gradients.norm() ** 2


@needs("ecos")
@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
@fewer
@given(jacobians(min_tasks=2, max_tasks=4))
def test_nash_mtl(gradients: Tensor) -> None:
    rival = torchjd.NashMTL(len(gradients), max_norm=0.0, optim_niter=100)
    alpha = rival.weighting(gradients)
    gram = gradients @ gradients.mT
    alpha *= (len(gradients) / (alpha @ gram @ alpha)).sqrt()
    assume((gram @ alpha * alpha - 1).abs().max() < 1e-2)  # else ECOS has failed
    torch.testing.assert_close(
        weights("nash-mtl", gradients), alpha / alpha.sum(), rtol=0, atol=1e-2
    )
