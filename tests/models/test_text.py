from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from fastmeta import TaskBatch, metagrad
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.learners import MetaLearner
from fastmeta.models import TextEncoder

VOCABULARY, WAYS = 11, 3


def texts(*shape: int, length: int = 6) -> Tensor:
    """Ids of texts of 1 to ``length`` tokens."""
    ids = torch.randint(1, VOCABULARY, (*shape, length))
    return ids * (torch.arange(length) < torch.randint(1, length + 1, (*shape, 1)))


def encoder(hidden: int = 4) -> TextEncoder:
    return TextEncoder(VOCABULARY, WAYS, hidden).double()


def tasks(count: int = 3) -> TaskBatch:
    y = torch.arange(WAYS).expand(count, -1)
    return TaskBatch(texts(count, WAYS), y, texts(count, 2 * WAYS), y.repeat(1, 2))


def reference_outputs(model: TextEncoder, ids: list[int]) -> Tensor:
    mean = torch.stack([model.embedding.weight[i] for i in ids]).mean(0)
    spread = ((mean - mean.mean()) ** 2).mean()
    unit = (mean - mean.mean()) / (spread + 1e-5).sqrt() * model.norm.weight + model.norm.bias
    return model.head.weight @ unit + model.head.bias


def test_against_the_definition() -> None:
    model = encoder()
    torch.nn.init.normal_(model.norm.weight)
    rows = [[3, 7, 3], [10], [1, 2, 3, 4]]
    ids = torch.tensor([[*row, *[0] * (4 - len(row))] for row in rows])
    expected = torch.stack([reference_outputs(model, row) for row in rows])
    torch.testing.assert_close(model(ids), expected, atol=1e-12, rtol=1e-12)


def test_padding_is_ignored() -> None:
    model, ids = encoder(), texts(5)
    torch.nn.init.normal_(model.embedding.weight)  # that of the padding, too
    outputs = model(ids)
    for padded in (
        F.pad(ids, (0, 9)),
        F.pad(ids, (2, 0)),
        torch.stack([row[torch.randperm(ids.shape[1])] for row in ids]),
    ):
        torch.testing.assert_close(model(padded), outputs, atol=1e-12, rtol=1e-12)
    doubled = torch.cat([ids, ids], dim=1)  # the mean of the same tokens twice
    torch.testing.assert_close(model(doubled), outputs, atol=1e-12, rtol=1e-12)


def test_a_text_of_only_padding_is_finite() -> None:
    model = encoder()
    outputs = model(torch.zeros(2, 6, dtype=torch.int64))
    expected = model.head.weight @ model.norm.bias + model.head.bias
    torch.testing.assert_close(outputs, expected.expand(2, -1))
    assert all(g.isfinite().all() for g in torch.autograd.grad(outputs.sum(), model.parameters()))


def test_derivatives_of_both_orders() -> None:
    model, ids = encoder(), texts(4)
    names = [name for name, _ in model.named_parameters()]

    def run(*params: Tensor) -> Tensor:
        output: Tensor = functional_call(model, dict(zip(names, params, strict=True)), (ids,))
        return output

    params = tuple(p.detach().requires_grad_() for p in model.parameters())
    assert gradcheck(run, params)
    assert gradgradcheck(run, params)


METAGRADS = {
    "exact": metagrad.Exact,
    "first order": metagrad.FirstOrder,
    "gsl": metagrad.GSLCorrection,
    "reptile": metagrad.Reptile,
    "recursion": metagrad.Recursion,
}


def meta_gradient(model: TextEncoder, batch: TaskBatch, name: str, engine: str = "loop") -> Tensor:
    learner = MetaLearner(
        model,
        F.cross_entropy,
        adaptation=SGD(lr=0.5, steps=2),
        metagrad=METAGRADS[name](),
        aggregation=Mean(),
        engine=engine,
    )
    return learner.meta_gradient(batch)[0]


@pytest.mark.parametrize("name", METAGRADS)
def test_the_padding_stays_zero(name: str) -> None:
    model, batch = encoder(), tasks()
    flat = meta_gradient(model, batch, name)
    assert not flat[: model.embedding.embedding_dim].any()
    assert flat.any()


def test_all_engines_and_meta_gradients_agree() -> None:
    model, batch = encoder(), tasks()
    exact = meta_gradient(model, batch, "exact")
    for other in (
        meta_gradient(model, batch, "recursion"),
        meta_gradient(model, batch, "exact", engine="batched"),
    ):
        torch.testing.assert_close(other, exact, atol=1e-10, rtol=1e-8)


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="hidden must be at least 1; got 0"):
        TextEncoder(5, 2, hidden=0)
