"""Forward gradients are unbiased."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, jvp

from examples import forward_gradient as example


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    monkeypatch.setattr(example, "WIDTHS", (3, 4, 4))
    monkeypatch.setattr(example, "GROUPS", 2)
    return torch.randn(5, 3), torch.randint(10, (5,))


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("estimate", [example.perturbed_weights, example.perturbed_activations])
def test_the_mean_is_the_gradient(
    case: tuple[torch.Tensor, torch.Tensor], estimate: example.Estimate, local: bool
) -> None:
    """Of 400 draws, within 5 standard errors."""
    params = {n: torch.randn_like(p) for n, p in example.initial(local).items()}
    draws = [estimate(params, *case, local) for _ in range(400)]
    for name, expected in example.exact(params, *case, local).items():
        if "head" in name:
            continue
        found = torch.stack([draw[name] for draw in draws])
        error = (found.mean(0) - expected).abs()
        assert (error <= 5 * found.std(0) / len(draws) ** 0.5 + 1e-6).all(), name


@pytest.mark.parametrize("local", [False, True])
def test_heads_are_exact(case: tuple[torch.Tensor, torch.Tensor], local: bool) -> None:
    params = {n: torch.randn_like(p) for n, p in example.initial(local).items()}
    expected = example.exact(params, *case, local)
    heads = example.exact_heads(params, *case, local)
    assert heads.keys() == {name for name in expected if "head" in name}
    for name, found in heads.items():
        torch.testing.assert_close(found, expected[name])


def test_local_losses_stay_in_their_layer(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Neither the gradient nor the directional derivative leaves a layer or group."""
    x, y = case
    params = {n: torch.randn_like(p) for n, p in example.initial(local=True).items()}

    def second(first: torch.Tensor) -> torch.Tensor:
        logits = example.forward({**params, "weight 1": first}, x, local=True)[1]
        return example.losses(logits, y)[2].sum()

    weight = params["weight 1"]
    assert not grad(second)(weight).any()
    assert not jvp(second, (weight,), (torch.randn_like(weight),))[1].any()
