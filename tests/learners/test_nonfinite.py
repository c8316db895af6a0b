"""Handling of non-finite tasks: they are skipped and counted, the others train as if alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fastmeta import FOMAML, GSL, MetaLearner, TaskBatch, metagrad
from fastmeta.adaptation import SGD, MetaSGD
from fastmeta.aggregation import AGGREGATIONS, GradientAgreement, GslWeights, Mean
from fastmeta.engines import StepBuffers, StepResult
from fastmeta.gradients import TaskGradients
from fastmeta.learners import NonFiniteError, NonFiniteGuard, compare_with_exact, nonfinite
from fastmeta.metagrad import METAGRADS, Exact, FirstOrder, Reptile
from tests.helpers.nonfinite import corrupt, learner_of, without
from tests.helpers.problems import MODULES, mlp, tasks

ENGINES = ("loop", "batched", "mlp")


class Cliff(nn.Module):
    """Where the first number of an input is zero, the loss is finite and its gradient NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + (self.slope * x.flatten(1)[:, :1]).square().sqrt()


def same(
    found: MetaLearner, expected: MetaLearner, batch: TaskBatch, finite_tasks: TaskBatch
) -> None:
    """Both learners have the same meta-gradient and buffers, ``found`` on the whole meta-batch."""
    flat, result = found.meta_gradient(batch)
    alone, _ = expected.meta_gradient(finite_tasks)
    assert alone.norm() > 0
    torch.testing.assert_close(flat, alone, rtol=1e-10, atol=1e-12)
    for own, other in zip(found.module.buffers(), expected.module.buffers(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)
    assert found.non_finite_guard.skipped == len(batch) - len(finite_tasks)
    assert len(result.query_loss) == len(batch)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("split", ["support", "query"])
@pytest.mark.parametrize("engine", ENGINES)
def test_other_tasks_train_as_if_alone(engine: str, split: str, value: float) -> None:
    for way, module in product((Exact, FirstOrder), (mlp(), MODULES["running batch norm"]())):
        if engine == "mlp" and not isinstance(module[0], nn.Flatten):
            continue
        batch = tasks(4)
        learner = learner_of(module.double(), metagrad=way(), engine=engine)
        alone = learner_of(module.double(), "keep", metagrad=way(), engine=engine)
        bad = corrupt(corrupt(batch, 0, split, value), 2, split, value)
        same(learner, alone, bad, without(batch, 0, 2))
        assert learner.non_finite_guard.finite.tolist() == [False, True, False, True]


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_a_finite_loss_with_a_non_finite_gradient(engine: str) -> None:
    module, batch = Cliff().double(), tasks(3)
    bad = corrupt(batch, 1, "query", 0.0)
    learner = learner_of(module, engine=engine)
    assert learner.meta_gradient(bad)[1].query_loss.isfinite().all()
    same(learner_of(module, engine=engine), learner_of(module, "keep"), bad, without(batch, 1))


@pytest.mark.parametrize("components", [{"metagrad": Reptile()}, {"adaptation": MetaSGD(0.3)}])
def test_other_methods(components: dict[str, Any]) -> None:
    module, batch = MODULES["running batch norm"]().double(), tasks(3)
    alone = learner_of(module, "keep", **copy.deepcopy(components))
    same(learner_of(module, **components), alone, corrupt(batch, 2), without(batch, 2))


@pytest.mark.parametrize("engine", ENGINES)
def test_finite_tasks_train_bitwise_as_without_the_guard(engine: str) -> None:
    module = mlp() if engine == "mlp" else MODULES["running batch norm"]()
    batches, ends = [tasks(3, torch.float32) for _ in range(3)], []
    for policy in ("keep", "skip", "raise"):
        learner = learner_of(module, policy, metagrad=metagrad.GSLCorrection(), engine=engine)
        for batch in batches:
            learner.step(batch)
        ends.append(learner.module.state_dict())
        assert learner.non_finite_guard.skipped == 0
    for end in ends[1:]:
        assert all(torch.equal(end[name], value) for name, value in ends[0].items())


def finite(state: Any) -> bool:
    if isinstance(state, dict | list | tuple):
        return all(map(finite, state.values() if isinstance(state, dict) else state))
    return not isinstance(state, Tensor) or bool(state.isfinite().all())


WAYS = [*METAGRADS, "gsl R2", "gsl R2p", "gsl R4"]


@pytest.mark.parametrize(
    ("way", "aggregation"), [*product(WAYS, ["mean"]), *product(["gsl"], AGGREGATIONS)]
)
def test_every_combination_stays_finite(way: str, aggregation: str) -> None:
    name, *variant = way.split()
    options = {"variant": variant[0]} if variant else {}
    learner = learner_of(
        MODULES["running batch norm"](),
        metagrad=METAGRADS[name](**options),
        aggregation=AGGREGATIONS[aggregation](),
    )
    batches = [tasks(3, torch.float32) for _ in range(4)]
    batches[1] = corrupt(batches[1], 0)
    batches[2] = corrupt(corrupt(corrupt(batches[2], 0), 1), 2)
    for step, batch in enumerate(batches):
        before = copy.deepcopy(list(learner.module.buffers()))
        flat, _ = learner.meta_gradient(batch)
        assert flat.isfinite().all()
        assert bool(flat.any()) == (step != 2)
        learner.step(batch)
        assert finite(learner.state_dict())
        if step == 2:
            assert all(map(torch.equal, before, learner.module.buffers()))
    assert learner.non_finite_guard.skipped == 2 * (1 + 3)


def test_a_step_without_finite_tasks_has_a_zero_gradient() -> None:
    batch = tasks(2, torch.float32)
    learner = learner_of(mlp(), optimizer=lambda p: torch.optim.SGD(p, 0.1))
    before = copy.deepcopy(learner.module.state_dict())
    learner.step(corrupt(corrupt(batch, 0), 1))
    assert all(torch.equal(before[k], v) for k, v in learner.module.state_dict().items())
    learner.step(batch)
    assert not torch.equal(before["1.weight"], learner.module.state_dict()["1.weight"])


def test_finite_task_gradients_whose_combination_overflows() -> None:
    # In float32, squares of norms above 1e19 are infinite.
    learner = learner_of(mlp(), aggregation=AGGREGATIONS["mgda"](), adaptation=SGD(0.1, 0))
    learner = learner.with_components(
        loss=lambda output, target: 1e25 * F.cross_entropy(output, target)
    )
    flat, _ = learner.meta_gradient(tasks(3, torch.float32))
    assert not flat.any()
    assert learner.non_finite_guard.skipped == 3


@pytest.mark.parametrize("engine", ENGINES)
def test_raise_names_step_and_task_and_keeps_the_parameters(engine: str) -> None:
    batch = tasks(3, torch.float32)
    learner = learner_of(mlp(), "raise", engine=engine)
    learner.step(batch)
    before = copy.deepcopy([learner.module.state_dict(), learner.optimizer.state_dict()])
    with pytest.raises(NonFiniteError, match=r"meta-step 2: .* of task 1 .*non_finite='skip'"):
        learner.step(corrupt(corrupt(batch, 2), 1))
    after = [learner.module.state_dict(), learner.optimizer.state_dict()]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    learner.non_finite_guard.check()
    learner.step(batch)
    assert learner.non_finite_guard.skipped == 2


@pytest.fixture
def simulated_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonfinite, "_on_host", lambda tensor: False)


@pytest.mark.usefixtures("simulated_gpu")
def test_on_gpu_the_first_failure_is_reported_later() -> None:
    batch = tasks(3, torch.float32)
    learner = learner_of(mlp(), "raise")
    for each in (batch, corrupt(batch, 2), corrupt(batch, 0), batch):
        learner.step(each)
    assert finite(learner.state_dict())
    with pytest.raises(NonFiniteError, match=r"meta-step 2: .* of task 2 "):
        learner.non_finite_guard.check()
    learner.step(batch)
    learner.non_finite_guard.check()


@pytest.mark.usefixtures("simulated_gpu")
def test_gpu_results_are_the_same() -> None:
    module, batch = MODULES["running batch norm"]().double(), tasks(3)
    same(learner_of(module), learner_of(module, "keep"), corrupt(batch, 1), without(batch, 1))
    same(learner_of(module), learner_of(module, "keep"), batch, batch)


@pytest.mark.usefixtures("simulated_gpu")
@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_no_gpu_synchronization(policy: Any) -> None:
    with FakeTensorMode():  # reading a value raises an error
        buffers, losses = StepBuffers([torch.randn(4, 3), torch.randn(2)]), torch.randn(5)
        for buffer in (buffers.outer, buffers.support):
            buffer.adopt(torch.randn(5, 14))
        buffers.extras = {"norm": [torch.randn(()) for _ in range(5)]}
        guard = NonFiniteGuard(policy)
        for _ in range(2):
            finite = guard.mask_tasks(buffers, StepResult(losses, losses, losses))
            found = TaskGradients(buffers.outer.filled, buffers.support.filled, finite=finite)
            for aggregation in (Mean(), GradientAgreement(), GslWeights(lam_2=0.1)):
                aggregation.weights(found)
            guard.check_combined(torch.randn(14), 1)
        with pytest.raises(DataDependentOutputException):
            guard.skipped.item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", ["outer", "support"])
def test_non_finite_task_gradients_become_zero(which: str, dtype: torch.dtype) -> None:
    buffers = StepBuffers([torch.zeros(7, dtype=dtype)])
    data = {name: torch.randn(4, 7).to(dtype) for name in ("outer", "support")}
    data[which][1, 3] = -torch.inf
    data[which][2, 0] = torch.nan
    for name, values in data.items():
        getattr(buffers, name).adopt(values.clone())
    guard = NonFiniteGuard("skip")
    zeros = torch.zeros(4)
    buffers.extras = {"norm": [torch.tensor(v) for v in (1.0, torch.nan, 3.0, 4.0)]}
    finite = guard.mask_tasks(buffers, StepResult(zeros, zeros, zeros))
    assert finite.tolist() == guard.finite.tolist() == [True, False, False, True]
    for name, values in data.items():
        found = getattr(buffers, name).filled
        assert torch.equal(found[[0, 3]], values[[0, 3]])
        assert not found[1:3].any()
    assert buffers.stacked_extras()["norm"].tolist() == [1, 0, 0, 4]


def test_a_non_finite_loss_suffices() -> None:
    buffers = StepBuffers([torch.zeros(7)])
    buffers.outer.adopt(torch.ones(2, 7))
    guard = NonFiniteGuard("skip")
    bad = torch.tensor([0.0, torch.inf])
    guard.mask_tasks(buffers, StepResult(bad, torch.zeros(2), torch.zeros(2)))
    assert guard.finite.tolist() == [True, False]


def test_counts_are_part_of_the_state() -> None:
    batch = tasks(3, torch.float32)
    learner, other = learner_of(mlp()), learner_of(mlp())
    learner.step(corrupt(batch, 1))
    saved = learner.state_dict()
    other.load_state_dict(copy.deepcopy(saved))
    for each in (learner, other):
        each.step(corrupt(batch, 1))
        assert (each.steps_taken, each.non_finite_guard.skipped) == (2, 2)


def test_by_default_nothing_is_masked() -> None:
    learner = FOMAML(mlp(), F.cross_entropy, inner_lr=0.1)
    learner.step(corrupt(tasks(2, torch.float32), 0))
    assert not finite(learner.module.state_dict())
    assert learner.non_finite_guard.skipped == 0


def test_methods_take_the_policy() -> None:
    learner = GSL(mlp(), F.cross_entropy, inner_lr=0.1, variant="R2", non_finite="skip")
    learner.step(corrupt(tasks(2, torch.float32), 0))
    assert finite(learner.state_dict())
    assert learner.non_finite_guard.skipped == 1


def test_an_unknown_policy_is_named() -> None:
    make: Callable[[], MetaLearner] = lambda: learner_of(mlp(), "skp")  # noqa: E731
    with pytest.raises(ValueError, match="non_finite must be one of keep, skip, raise; got 'skp'"):
        make()


def test_comparing_with_the_exact_meta_gradient_does_not_count_tasks() -> None:
    learner = learner_of(mlp(), "raise")
    compare_with_exact(learner, corrupt(tasks(2, torch.float32), 0))
    assert (learner.steps_taken, learner.non_finite_guard.skipped) == (0, 0)
