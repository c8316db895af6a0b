"""A user's program under ``mypy --strict``: the public names leak no Any.

Checked by mypy in CI; pytest does not collect it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import assert_type

import fastmeta
from fastmeta import adaptation, aggregation, metagrad, ops
from fastmeta.data import ClassDataset, EpisodeSampler, SineTasks, load_digits
from fastmeta.gradients import TaskGradients
from fastmeta.learners import (
    METHODS,
    Fidelity,
    MethodSpec,
    StepResult,
    build,
    compare_precision,
    compare_with_exact,
)
from fastmeta.lightning import LightningLearner, TaskDataModule


class InverseLength(aggregation.Aggregation):
    def weights(self, rows: TaskGradients) -> Tensor:
        return rows.meta().square().sum(1).rsqrt()


module = fastmeta.models.MLP(1, 1, (8,))
tasks = SineTasks(tasks=4, shots=5, queries=5, length=3)
learner = fastmeta.MetaLearner(
    module,
    F.mse_loss,
    adaptation=adaptation.SGD(lr=0.1),
    metagrad=metagrad.GSLCorrection(eta=1.0),
    aggregation=InverseLength(),
    optimizer=lambda params: torch.optim.Adam(params, lr=1e-3),
)
assert_type(DataLoader(tasks, batch_size=None), DataLoader[fastmeta.TaskBatch])
for batch in tasks:
    assert_type(learner.step(batch), StepResult)
    assert_type(learner.backward(batch).query_loss, Tensor)
    assert_type(learner.predict(batch, steps=2), Tensor)
    assert_type(learner.predict(batch[0]), Tensor)
    assert_type(compare_with_exact(learner, batch), Fidelity)
    assert_type(compare_precision(learner, batch, torch.float32), Fidelity)
    assert_type(learner.evaluate(batch), StepResult)
    assert_type(learner.predict(fastmeta.RaggedTaskBatch(batch)), list[Tensor])
    for task in batch:
        fast = learner.adapt(task.support_x, task.support_y)
        assert_type(fast, dict[str, Tensor])

ids = {"input_ids": torch.zeros(2, 3, 4, dtype=torch.int64)}
by_name = fastmeta.TaskBatch(ids, None, ids, None)
assert_type(by_name, fastmeta.TaskBatch[dict[str, Tensor], None])
assert_type(by_name[0].query_x, dict[str, Tensor])
assert_type(learner.predict(by_name), Tensor)
assert_type(learner.adapt(by_name[0].support_x, None), dict[str, Tensor])

assert_type(build("gsl", module, F.mse_loss, inner_lr=0.1), fastmeta.MetaLearner)
assert_type(fastmeta.GSL(module, F.mse_loss, inner_lr=0.1, eta=0.3).module, torch.nn.Module)
assert_type(METHODS["maml"], MethodSpec)
assert_type(METHODS["maml"].metagrad, str)

assert_type(fastmeta.evaluate(learner, tasks), fastmeta.Evaluation)
assert_type(fastmeta.evaluate(learner, tasks, steps=2).mean, float)
digits = load_digits("train")
assert_type(digits, ClassDataset)
assert_type(EpisodeSampler(digits, 5, 1, 5, tasks=4)[0].query_x, Tensor)

rows = ops.pack([param.detach() for param in module.parameters()])
assert_type(rows, Tensor)
assert_type(ops.gram(rows), Tensor)
assert_type(ops.combine(rows, torch.ones(1)), Tensor)
assert_type(fastmeta.aggregate([module(torch.ones(1, 1)).sum()], module.parameters()), Tensor)

optimizer = fastmeta.GSLOptimizer(module.parameters(), base=torch.optim.Adam, lr=1e-3)
with optimizer.task(scale=0.5) as marked:
    marked.support([param.detach() for param in module.parameters()])
    assert_type(marked.inner_gradients(module(torch.ones(1, 1)).sum()), tuple[Tensor, ...])
assert_type(optimizer.step(), None)
assert_type(optimizer.step(lambda: torch.ones(())), Tensor)

lit = LightningLearner(learner, steps=5)
assert_type(lit.learner, fastmeta.MetaLearner)
data = TaskDataModule(tasks, tasks, tasks, train_batches=1, val_batches=1, test_batches=1)
assert_type(data.train_dataloader(), DataLoader[fastmeta.TaskBatch])
