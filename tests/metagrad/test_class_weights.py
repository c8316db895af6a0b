"""Class weights in the query loss, and their steps by SPSA."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from fastmeta import MetaLearner, TaskBatch, _spsa
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.learners import build
from fastmeta.metagrad import ClassWeights, Exact, FirstOrder, LayerWeights, MetaGradient, Recursion
from tests.helpers.nonfinite import corrupt
from tests.helpers.problems import WAYS, mlp, tasks

LR, CLASSES = 0.3, 7


def known_tasks(count: int = 3, dtype: torch.dtype = torch.float64) -> TaskBatch:
    """Tasks of different classes of a dataset."""
    ids = torch.stack([torch.randperm(CLASSES)[:WAYS] for _ in range(count)])
    return replace(tasks(count, dtype), ids=ids)


def learner(metagrad: MetaGradient, dtype: torch.dtype = torch.float64) -> MetaLearner:
    return MetaLearner(
        mlp().to(dtype),
        F.cross_entropy,
        adaptation=SGD(LR, 2),
        metagrad=metagrad,
        aggregation=Mean(),
        optimizer=lambda p: torch.optim.SGD(p, 0.1),
        non_finite="skip",
    )


def each_loss(model: MetaLearner, batch: TaskBatch, task: int) -> tuple[list[Tensor], Tensor]:
    """Initial parameters, and the losses of the query examples after adaptation."""
    module, one = model.module, batch[task]
    params = {n: p.detach().requires_grad_() for n, p in module.named_parameters()}
    fast = dict(params)
    for _ in range(2):
        value = F.cross_entropy(functional_call(module, fast, (one.support_x,)), one.support_y)
        grads = torch.autograd.grad(value, list(fast.values()), create_graph=True)
        fast = {n: p - LR * g for (n, p), g in zip(fast.items(), grads, strict=True)}
    output = functional_call(module, fast, (one.query_x,))
    return list(params.values()), F.cross_entropy(output, one.query_y, reduction="none")


def with_weights(model: MetaLearner, v: Tensor) -> None:
    state = model.state_dict()
    state["metagrad"] |= {
        "spsa_v": v,
        "spsa_losses": torch.ones_like(v),
        "spsa_step": torch.tensor(3),
    }
    model.load_state_dict(state)


@pytest.mark.parametrize(
    "inner", [Exact(), Recursion(), FirstOrder()], ids=lambda m: type(m).__name__
)
def test_at_first_it_is_the_inner_meta_gradient(inner: MetaGradient) -> None:
    batch, plain = known_tasks(), learner(inner)
    model = plain.with_components(metagrad=ClassWeights(inner))
    found, result = model.meta_gradient(batch)
    expected, reference = plain.meta_gradient(batch)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.query_loss, reference.query_loss)
    torch.testing.assert_close(result.query_output, reference.query_output)


def test_examples_are_weighted_by_their_class() -> None:
    batch, model = known_tasks(), learner(ClassWeights(Exact()))
    v = torch.rand(CLASSES, dtype=torch.float64) + 0.5
    with_weights(model, v)
    expected: Tensor | float = 0.0
    for i in range(len(batch)):
        params, losses = each_loss(model, batch, i)
        weights = 1 / v[batch.ids[i][batch[i].query_y]] ** 2 / (1 / v**2).mean()
        grads = torch.autograd.grad((weights * losses).mean(), params)
        expected = expected + torch.cat([g.flatten() for g in grads]) / len(batch)
    found, _ = model.meta_gradient(batch)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_classes_in_the_meta_batch_move_by_spsa_and_others_do_not() -> None:
    batch = known_tasks(2)
    model = learner(ClassWeights(Exact(), alpha=0.1, beta=0.2, seed=4))
    v = torch.rand(CLASSES, dtype=torch.float64) + 0.5
    with_weights(model, v)
    losses, classes = [], []
    for i in range(len(batch)):
        losses.append(each_loss(model, batch, i)[1].detach())
        classes.append(batch.ids[i][batch[i].query_y])
    losses, classes = torch.cat(losses), torch.cat(classes)
    step = 4
    beta, alpha = 0.2 / step ** (1 / 24), 0.1 / step ** (1 / 6)
    signs = _spsa.SPSA("delta", 0.1, 0.2, 100, 4)._signs(step, v)

    def objective(moved: Tensor) -> Tensor:
        of_example = moved[classes]
        return (losses / of_example**2 + (of_example**2).log()).mean()

    slope = (objective(v + beta * signs) - objective(v - beta * signs)) / (2 * beta)
    expected = v - alpha * signs * slope / len(batch)
    model.meta_gradient(batch)
    found = model.state_dict()["metagrad"]["spsa_v"]
    there = torch.isin(torch.arange(CLASSES), classes)
    torch.testing.assert_close(found[there], expected[there], rtol=1e-9, atol=1e-12)
    assert torch.equal(found[~there], v[~there])


def test_new_classes_begin_with_one() -> None:
    model = learner(ClassWeights(FirstOrder(), "track", alpha=0.1, beta=0.2))
    first = replace(known_tasks(2), ids=torch.tensor([[0, 1, 2], [2, 0, 1]]))
    model.step(first)
    assert len(model.state_dict()["metagrad"]["spsa_v"]) == 3
    model.step(replace(first, ids=torch.tensor([[0, 1, 6], [6, 0, 1]])))
    state = model.state_dict()["metagrad"]
    assert state["spsa_v"][3:6].eq(1).all()
    assert state["spsa_v"][6] != 1
    assert all(part.isfinite().all() for part in state.values() if isinstance(part, Tensor))


def test_tasks_that_are_left_out_do_not_move_their_classes() -> None:
    model = learner(ClassWeights(FirstOrder(), alpha=0.1, beta=0.2))
    batch = replace(known_tasks(2), ids=torch.tensor([[0, 1, 2], [3, 4, 5]]))
    model.step(corrupt(batch, 0))
    v = model.state_dict()["metagrad"]["spsa_v"]
    assert v[:3].eq(1).all()
    assert v[3:].ne(1).all()


def test_a_resumed_run_takes_the_same_steps() -> None:
    def make() -> MetaLearner:
        inner = LayerWeights()  # has a state of its own
        return learner(ClassWeights(inner, "track", 0.1, 0.2, rescale_every=2), torch.float32)

    batches = [known_tasks(3, torch.float32) for _ in range(5)]
    whole, half, resumed = make(), make(), make()
    half.load_state_dict(copy.deepcopy(whole.state_dict()))
    for batch in batches:
        whole.step(batch)
    for batch in batches[:3]:
        half.step(batch)
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in batches[3:]:
        resumed.step(batch)
    for name, value in whole.state_dict()["metagrad"].items():
        other = resumed.state_dict()["metagrad"][name]
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(other)), name
    one, other = whole.module.state_dict(), resumed.module.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_by_name_with_the_options_of_both() -> None:
    options = {"of": "gsl", "variant": "layer-weights", "alpha": 0.01, "beta": 0.1}
    model = build(
        "maml",
        mlp(),
        F.cross_entropy,
        inner_lr=LR,
        metagrad="class-weights",
        metagrad_options=options,
    )
    assert isinstance(model.metagrad, ClassWeights)
    assert isinstance(model.metagrad.inner, LayerWeights)
    assert model.step(known_tasks(2, torch.float32)).query_loss.isfinite().all()


def test_tasks_without_classes_are_refused() -> None:
    batch = replace(known_tasks(2), ids=None)
    with pytest.raises(ValueError, match=r"expected a TaskBatch with ids \(T, ways\)"):
        learner(ClassWeights(Exact())).step(batch)
