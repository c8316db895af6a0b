"""Meta-gradients of pruned copies, against plain autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import CoLearner, MetaLearner, TaskBatch
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.gradients import FlatLayout
from fastmeta.learners import build
from fastmeta.metagrad import (
    GSL,
    Augmented,
    ClassWeights,
    Exact,
    FirstOrder,
    Implicit,
    LayerWeights,
    MetaGradient,
    Recursion,
    Reptile,
    StepContext,
)
from tests.helpers.problems import MODULES, WAYS, convolution, mlp, tasks

LR, STEPS = 0.2, 2
INNERS: dict[str, Callable[[], MetaGradient]] = {
    "exact": Exact,
    "first order": FirstOrder,
    "recursion": Recursion,
    "implicit": Implicit,
    "gsl": GSL,
    "reptile": Reptile,
}


def learner(metagrad: MetaGradient, module: nn.Module, **options: Any) -> MetaLearner:
    return MetaLearner(
        module,
        F.cross_entropy,
        adaptation=options.pop("adaptation", SGD(LR, STEPS)),
        metagrad=metagrad,
        aggregation=Mean(),
        optimizer=options.pop("optimizer", lambda p: torch.optim.SGD(p, 0.1)),
        **options,
    )


def adapted_gradient(
    module: nn.Module, batch: TaskBatch, task: int, masks: dict[str, Tensor], second_order: bool
) -> dict[str, Tensor]:
    """The meta-gradient of a copy whose weights and gradients are multiplied by masks."""
    one = batch[task]
    start = {n: p.detach().requires_grad_() for n, p in module.named_parameters()}
    fast = {n: p * masks[n] if n in masks else p for n, p in start.items()}
    for _ in range(STEPS):
        loss = F.cross_entropy(functional_call(module, fast, (one.support_x,)), one.support_y)
        grads = torch.autograd.grad(loss, list(fast.values()), create_graph=second_order)
        steps = zip(fast.items(), grads, strict=True)
        fast = {n: p - LR * (g * masks[n] if n in masks else g) for (n, p), g in steps}
    loss = F.cross_entropy(functional_call(module, fast, (one.query_x,)), one.query_y)
    grads = torch.autograd.grad(loss, list(start.values()))
    return dict(zip(start, grads, strict=True))


def flat(grads: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize(("inner", "second"), [(Exact, True), (FirstOrder, False)])
@pytest.mark.parametrize("rule", ["catfish", "prune"])
def test_against_masked_weights_and_gradients(
    rule: str, inner: Callable[[], MetaGradient], second: bool
) -> None:
    module, batch = convolution(False).double(), tasks(2)
    expected: Tensor | float = 0.0
    for i in range(len(batch)):
        own = adapted_gradient(module, batch, i, {}, second)
        weight = module[0].weight
        order = (weight * own["0.weight"]).abs().flatten().argsort(descending=True)
        mask = torch.ones(36, dtype=torch.float64)
        # Of 36 entries int(0.3 * 36) - 1 are dropped, or int(0.7 * 36) kept.
        mask[order[:9] if rule == "catfish" else order[25:]] = 0
        masks = {"0.weight": mask.view_as(weight)}
        other = adapted_gradient(module, batch, i, masks, second)
        assert (other["0.weight"].flatten()[mask == 0] == 0).all()
        expected = expected + (flat([*own.values()]) + flat([*other.values()])) / len(batch)
    model = learner(Augmented(inner(), copies=1, keep=0.7, masks=rule), module)
    found, _ = model.meta_gradient(batch)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", INNERS)
def test_copies_without_masks_multiply_the_meta_gradient(name: str) -> None:
    module, batch = MODULES["running batch norm"]().double(), tasks(2)
    plain = learner(INNERS[name](), copy.deepcopy(module))
    model = learner(Augmented(INNERS[name](), masks="none"), module)
    expected, reference = plain.meta_gradient(batch)
    found, result = model.meta_gradient(batch)
    torch.testing.assert_close(found, 4 * expected, rtol=1e-10, atol=1e-13)
    for one, other in zip(vars(result).values(), vars(reference).values(), strict=True):
        assert torch.equal(one, other)
    assert all(map(torch.equal, module.buffers(), plain.module.buffers()))


def test_without_copies_it_is_the_inner_meta_gradient() -> None:
    batch = tasks(2)
    plain = learner(Exact(), convolution(True).double())
    model = plain.with_components(metagrad=Augmented(Exact(), copies=0))
    assert torch.equal(model.meta_gradient(batch)[0], plain.meta_gradient(batch)[0])


def test_statistics_are_those_of_the_network_itself() -> None:
    module, batch = convolution(True).double(), tasks(2)
    plain = learner(Exact(), copy.deepcopy(module))
    plain.meta_gradient(batch)
    learner(Augmented(Exact(), keep=0.5), module).meta_gradient(batch)
    assert all(map(torch.equal, module.buffers(), plain.module.buffers()))


def test_dropped_entries_get_nothing_from_their_copy() -> None:
    # Weight decay moves the entries that Reptile's copies do not have.
    module, batch = convolution(False).double(), tasks(1)
    plain = learner(Reptile(), module, adaptation=SGD(LR, STEPS, weight_decay=0.3))
    model = plain.with_components(metagrad=Augmented(Reptile(), copies=1, keep=0.5))
    own, both = plain.meta_gradient(batch)[0], model.meta_gradient(batch)[0]
    assert (both[:36] == own[:36]).sum() == 17
    assert (both[36:] != own[36:]).all()


@pytest.mark.parametrize(("keep", "dropped"), [(0.98, 22), (0.999, 0), (1.0, 0)])
def test_numbers_of_dropped_entries(keep: float, dropped: int) -> None:
    score = torch.rand(64, 2, 3, 3)
    mask = Augmented(Exact(), keep=keep)._mask(score, keep)
    assert (mask == 0).sum() == dropped
    if dropped:
        assert score[mask == 0].min() > score[mask == 1].max()
    kept = Augmented(Exact(), masks="prune")._mask(score, 0.98)
    assert kept.sum() == 1128


def test_shares_and_sizes_are_functions_of_seed_step_and_task() -> None:
    def draws(seed: int, step: int, task: int) -> list[tuple[float, int | None]]:
        method = Augmented(Exact(), keep=0.5, sizes=(8, 4, 2), seed=seed)
        layout = FlatLayout.of([torch.zeros(1)])
        context = StepContext(layout, 1, step=step, task=task)
        return method._draws(context)

    first = draws(3, 5, 1)
    assert first == draws(3, 5, 1)
    assert len({str(draws(*other)) for other in [(3, 5, 1), (4, 5, 1), (3, 6, 1), (3, 5, 2)]}) == 4
    shares = [share for share, _ in first]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0.5
    assert all(0.5 <= share <= 0.999 for share in shares)


class Small(nn.Module):
    """A network for images of 2x2, made of one for 4x4: the head has its first columns."""

    def __init__(self, module: nn.Sequential) -> None:
        super().__init__()
        self.body, self.head = copy.deepcopy(module[:-1]), nn.Linear(16, WAYS)
        with torch.no_grad():
            self.head.weight.copy_(module[-1].weight[:, :16])
            self.head.bias.copy_(module[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("name", ["exact", "first order", "gsl"])
def test_resized_images_use_the_first_columns_of_the_head(name: str) -> None:
    module, batch = convolution(False).double(), tasks(2)

    def resize(x: Tensor) -> Tensor:
        small = F.interpolate(x.flatten(0, 1), (2, 2), mode="bilinear", align_corners=True)
        return small.unflatten(0, x.shape[:2])

    small = replace(batch, support_x=resize(batch.support_x), query_x=resize(batch.query_x))
    own, _ = learner(INNERS[name](), module).meta_gradient(batch)
    other = learner(INNERS[name](), Small(module).double())
    other.backward(small)
    *body, weight, bias = (p.grad for p in other.module.parameters())
    padded = F.pad(weight, (0, 64 - 16))
    expected = own + flat([*body, padded, bias])
    method = Augmented(INNERS[name](), copies=1, masks="none", sizes=[2])
    found, _ = learner(method, module).meta_gradient(batch)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert not module[-1]._forward_pre_hooks


def test_resizing_is_refused_where_it_has_no_meaning() -> None:
    batch, method = tasks(1), Augmented(FirstOrder(), sizes=(2,))
    flat_images = batch.map(lambda t: t.flatten(2) if t.dim() > 2 else t)
    with pytest.raises(ValueError, match="only images can be resized"):
        learner(method, mlp().double()).step(flat_images)
    with pytest.raises(ValueError, match="Give no size above that of the images"):
        learner(Augmented(FirstOrder(), sizes=(5,)), convolution(False).double()).step(batch)
    options: dict[str, Any]
    for options in (
        {"checkpoint": True},
        {"co_learner": CoLearner(nn.Linear(WAYS, WAYS).double(), "")},
    ):
        model = learner(method, convolution(False).double(), **options)
        with pytest.raises(ValueError, match="resized images cannot be used with"):
            model.step(batch)


@pytest.mark.parametrize("engine", ["batched", "mlp", "sequence"])
def test_other_engines_say_why_not(engine: str) -> None:
    model = learner(Augmented(Exact()), mlp(), engine=engine)
    with pytest.raises(ValueError, match="Augmented"):
        model.check(tasks(2, torch.float32))


def test_the_compiled_engine_says_why_not() -> None:
    model = learner(Augmented(Exact()), mlp(), engine="compiled")
    with pytest.raises(NotImplementedError, match="depends on the number of the meta-step"):
        model.step(tasks(2, torch.float32))


def test_class_weights_are_moved_by_the_network_itself() -> None:
    batch, module = tasks(2), convolution(False).double()
    weighted = ClassWeights(FirstOrder(), alpha=0.1, beta=0.2)
    plain = learner(weighted, copy.deepcopy(module))
    model = learner(Augmented(weighted, masks="none"), module)
    for _ in range(2):
        expected = plain.meta_gradient(batch)[0]
        found = model.meta_gradient(batch)[0]
    torch.testing.assert_close(found, 4 * expected, rtol=1e-10, atol=1e-13)
    one, other = (m.state_dict()["metagrad"]["spsa_v"] for m in (plain, model))
    assert torch.equal(one, other)
    assert one.ne(1).any()
    with pytest.raises(ValueError, match="the other way round"):
        ClassWeights(Augmented(FirstOrder()))


def test_a_resumed_run_takes_the_same_steps() -> None:
    def make() -> MetaLearner:
        method = Augmented(LayerWeights(), keep=0.6, sizes=(4, 2))  # with a state
        return learner(method, copy.deepcopy(start), optimizer=torch.optim.Adam)

    start = convolution(False)
    batches = [tasks(2, torch.float32) for _ in range(4)]
    whole, half = make(), make()
    for batch in batches:
        whole.step(batch)
    for batch in batches[:2]:
        half.step(batch)
    resumed = make()
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in batches[2:]:
        resumed.step(batch)
    one, other = whole.module.state_dict(), resumed.module.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ValueError, match="the saved state has weights"):
        learner(Augmented(Exact()), copy.deepcopy(start)).load_state_dict(whole.state_dict())


def test_by_name_with_the_options_of_both() -> None:
    options = {"of": "recursion", "graphs": 0, "copies": 1, "keep": 0.9, "sizes": [4]}
    model = build("mgaug", mlp(), F.cross_entropy, inner_lr=LR, metagrad_options=options)
    assert isinstance(model.metagrad, Augmented)
    assert isinstance(model.metagrad.inner, Recursion)
    assert model.metagrad.inner.graphs == 0
    assert model.step(tasks(2, torch.float32)).query_loss.isfinite().all()
    with pytest.raises(ValueError, match="a co-learner learns from a query loss"):
        learner(Augmented(Reptile()), mlp(), co_learner=CoLearner(nn.Linear(WAYS, WAYS), ""))
