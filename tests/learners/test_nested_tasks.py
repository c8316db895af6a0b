"""Inputs and targets in mappings, and tasks of unequal sizes, in every engine and method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import MAML, MetaLearner, RaggedTaskBatch, Task, TaskBatch, learners, model_loss
from fastmeta.aggregation import AGGREGATIONS
from fastmeta.distributed import Sharding
from fastmeta.evaluation import ACCURACY
from fastmeta.learners import METHODS, compare_with_exact
from tests.helpers.problems import CLOSED_FORM, WAYS, mlp, tasks

# CML needs a co-learner, WarpGrad and B-SMALL layers of their own; closed forms and GradNCP need
# outputs and targets that are tensors.
COMMON = [
    name
    for name, spec in METHODS.items()
    if name not in ("b-small", "cml", "gradncp")
    and "warp" not in name
    and spec.adaptation not in CLOSED_FORM
]


class Named(nn.Module):
    """Takes its inputs by name, and returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, image: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(image * scale[:, None, None, None])}


def named(batch: TaskBatch) -> TaskBatch:
    """The same tasks by name."""

    def inputs(x: Tensor) -> dict[str, Tensor]:
        return {"scale": torch.full(x.shape[:2], 2.0, dtype=x.dtype), "image": x / 2}

    y = {"label": batch.support_y}, {"label": batch.query_y}
    return TaskBatch(inputs(batch.support_x), y[0], inputs(batch.query_x), y[1], batch.ids)


def loss(output: dict[str, Tensor], y: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(output["logits"], y["label"])


def pair(method: str, **options: Any) -> tuple[MetaLearner, MetaLearner]:
    """A learner of tensors, and one of mappings with the same parameters."""
    plain, module = mlp().double(), Named().double()
    module.net.load_state_dict(plain.state_dict())
    options = {"inner_lr": 0.1, "inner_steps": 0 if method == "mamf" else 2, **options}
    seed = int(torch.randint(1000, ()))  # of networks that generate rates
    torch.manual_seed(seed)
    first = learners.build(method, plain, F.cross_entropy, engine="loop", **options)
    torch.manual_seed(seed)
    return first, learners.build(method, module, loss, **options)


@pytest.mark.parametrize("method", COMMON)
def test_mappings_equal_tensors(method: str) -> None:
    # The others' components do not support stacked tasks.
    loop_only = (
        *("alfa", "imaml", "local-moml", "maml++"),
        *("meta-sgd", "mgaug", "moml", "robust-maml"),
    )
    for engine in ("auto",) if method in loop_only else ("auto", "batched"):
        plain, own = pair(method)
        own.engine = engine
        batch = tasks()
        expected, result = plain.meta_gradient(batch)
        found, own_result = own.meta_gradient(named(batch))
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(own_result.query_output, result.query_output)
        torch.testing.assert_close(own_result.query_loss, result.query_loss)


def test_predictions_and_diagnostics() -> None:
    plain, own = pair("fomaml")
    batch = tasks()
    torch.testing.assert_close(own.predict(named(batch)), plain.predict(batch))
    torch.testing.assert_close(
        compare_with_exact(own, named(batch)).cosine, compare_with_exact(plain, batch).cosine
    )
    task, like = named(batch)[0], batch[0]
    fast = own.adapt(task.support_x, task.support_y)
    for name, value in plain.adapt(like.support_x, like.support_y).items():
        torch.testing.assert_close(fast[f"net.{name}"], value)


def test_the_compiled_engine_rejects_mappings() -> None:
    learner = learners.build("maml", mlp(), F.cross_entropy, inner_lr=0.1, engine="mlp")
    with pytest.raises(ValueError, match="support_x is a dict; expected a tensor"):
        learner.step(named(tasks()))
    batch = tasks(dtype=torch.float32)
    with pytest.raises(ValueError, match="query_y is a NoneType; expected a tensor"):
        learner.step(TaskBatch(batch.support_x, batch.support_y, batch.query_x, None))


def test_empty_mappings_in_adapt() -> None:
    _, own = pair("maml")
    with pytest.raises(ValueError, match=r"at least one example; got inputs\['scale'\] \(0,\)"):
        own.adapt({"scale": torch.zeros(0), "image": torch.zeros(0, 1, 4, 4)}, None)


def ragged(batch: TaskBatch) -> RaggedTaskBatch:
    """Task `i` without its last `i` support and `2 i` query examples."""
    found = []
    for i, (x, y, query_x, query_y) in enumerate(batch):
        n, q = len(x) - i, len(query_x) - 2 * i
        found.append(Task(x[:n], y[:n], query_x[:q], query_y[:q]))
    return RaggedTaskBatch(found)


# Ragged tasks have no ids, which MOML needs.
@pytest.mark.parametrize("method", [name for name in COMMON if name != "moml"])
def test_ragged_tasks(method: str) -> None:
    """Each meta-gradient is that of its task alone."""
    # The shares of several copies of MGAug depend on the place of the task.
    plain, _ = pair(method, metagrad_options={"copies": 1} if method == "mgaug" else {})
    plain.engine = "auto"
    batch = ragged(tasks())
    alone = []
    for task in batch:
        one = TaskBatch(*(part[None] for part in task))
        _, result = plain.meta_gradient(one)
        plain.steps_taken -= 1
        alone.append((plain._step.buffers.outer.filled[0].clone(), result))
    _, result = plain.meta_gradient(batch)
    found = plain._step.buffers.outer.filled
    torch.testing.assert_close(found, torch.stack([g for g, _ in alone]))
    assert isinstance(result.query_output, list)
    for i, (_, one) in enumerate(alone):
        torch.testing.assert_close(result.query_output[i], one.query_output[0])
        torch.testing.assert_close(result.query_loss[i], one.query_loss[0])


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_every_aggregation_runs_ragged_tasks(name: str) -> None:
    learner, _ = pair("maml", aggregation=name)
    result = learner.step(ragged(tasks()))
    assert result.query_loss.isfinite().all()


def test_ragged_predictions_and_scores() -> None:
    learner, _ = pair("maml")
    batch = ragged(tasks())
    outputs = learner.predict(batch)
    assert [tuple(o.shape) for o in outputs] == [(len(t.query_y), WAYS) for t in batch]
    expected = [
        (o.argmax(-1) == y).float().mean() for o, y in zip(outputs, batch.query_y, strict=True)
    ]
    torch.testing.assert_close(ACCURACY.scores(outputs, batch.query_y), torch.stack(expected))
    with pytest.raises(TypeError, match="expected a tensor in query_y, got dict"):
        ACCURACY.scores(learner.predict(tasks()), named(tasks()).query_y)


@pytest.mark.parametrize("engine", ["batched", "mlp"])
def test_other_engines_reject_ragged_tasks(engine: Any) -> None:
    learner = learners.build("maml", mlp(), F.cross_entropy, inner_lr=0.1, engine=engine)
    for call in (learner.check, learner.step):
        with pytest.raises(ValueError, match="RaggedTaskBatch, whose tasks may differ in size"):
            call(ragged(tasks(dtype=torch.float32)))


def test_unequal_numbers_of_classes() -> None:
    """The loss sees the classes of its task only, such as of a head that is wide enough."""

    def masked(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output[:, : int(y.max()) + 1], y)

    batch = tasks(2)
    two = batch[0].support_y < 2, batch[0].query_y < 2
    first = Task(
        batch[0].support_x[two[0]],
        batch[0].support_y[two[0]],
        batch[0].query_x[two[1]],
        batch[0].query_y[two[1]],
    )
    learner = learners.build("maml", mlp().double(), masked, inner_lr=0.1)
    result = learner.step(RaggedTaskBatch([first, batch[1]]))
    assert [len(o) for o in result.query_output] == [8, 12]


def test_a_rank_takes_its_part_of_ragged_tasks() -> None:
    sharding = Sharding.__new__(Sharding)
    sharding.rank, sharding.size, sharding.tasks, sharding.counts = 1, 2, 3, [2, 1]
    batch = ragged(tasks())
    (own,) = sharding.part(batch)
    assert torch.equal(own.support_x, batch[2].support_x)
    sharding.check_own(sharding.part(batch))


def test_steps_of_an_own_loss_without_targets() -> None:
    """The module returns its loss, a scalar."""

    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return (x - self.level).square().mean()

    learner = MAML(Energy(), model_loss, inner_lr=0.5)
    x = torch.randn(2, 4, 3)
    result = learner.step(TaskBatch(x, None, x, None))
    assert torch.equal(result.query_output, result.query_loss)
