"""The sequence step on a GPU against the reference on the CPU; its CUDA graphs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastmeta import FOMAML, GSL, MAML, ops
from fastmeta.engines import LoopEngine
from fastmeta.models import Conv4
from fastmeta.ops import SequenceStep
from fastmeta.reference.mlp import LOSSES
from tests.cuda.gpu import needs_gpu, replayed, without_synchronization
from tests.engines.test_sequence import images
from tests.helpers.sequence_cases import NETWORKS, ORDERS, check, examples, network, options

pytestmark = needs_gpu


@pytest.fixture(autouse=True)
def without_tf32() -> Any:
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


def on_gpu(args: list[Any]) -> list[Any]:
    return [[p.cuda() for p in args[0]], *(t.cuda() for t in args[1:])]


def on_cpu(step: SequenceStep) -> SequenceStep:
    return SequenceStep(*(None if t is None else t.cpu() for t in step))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_matches_the_reference(loss: str, name: str, dtype: torch.dtype) -> None:
    net = network(name)
    for order in ORDERS:
        args = [[p.to(dtype) for p in net.params], *examples(net, loss, dtype=dtype)]
        how = options(net, loss, order, steps=1 if dtype == torch.float32 else 3)
        check(on_cpu(ops.sequence_step(*on_gpu(args), record_inner=True, **how)), args, how)


@pytest.mark.parametrize("order", ["first order", "second order", "all similarities"])
@pytest.mark.parametrize("name", NETWORKS)
def test_replays(name: str, order: str) -> None:
    net, workspace = network(name), ops.Workspace()
    how = options(net, order=order)
    params, seen = [p.cuda() for p in net.params], []
    for call in range(5):
        for p in params:
            p.mul_(0.9)
        tasks = [t.cuda() for t in examples(net, "cross_entropy")]
        found: list[Any] = []

        def run(tasks: Any = tasks, found: list[Any] = found) -> None:
            found.append(ops.sequence_step(params, *tasks, workspace=workspace, **how))

        if call < 2:  # the second one captures
            run()
        else:
            without_synchronization(run)
        seen.append((found[0], [[p.cpu() for p in params], *(t.cpu() for t in tasks)]))
    for step, args in seen:
        check(on_cpu(step), args, how)


def test_in_a_graph_of_the_caller() -> None:
    net = network("pooled")
    args = [net.params, *examples(net, "cross_entropy")]
    how, workspace = options(net, order="all similarities"), ops.Workspace()
    there = on_gpu(args)
    ops.sequence_step(*there, **how)
    step = replayed(lambda: ops.sequence_step(*there, workspace=workspace, **how))
    check(on_cpu(step), args, how)


@pytest.mark.parametrize("method", [MAML, FOMAML, GSL])
def test_training_equals_that_of_the_loop_engine(method: Any) -> None:
    module = Conv4(2, 8, 3, hidden=4, batch_norm_stats=True, batch_norm_steps=2).double().cuda()
    batches = [images(4).to("cuda") for _ in range(5)]
    ends = []
    for engine in ("loop", "sequence"):
        own = copy.deepcopy(module)
        learner = method(own, F.cross_entropy, inner_lr=0.2, inner_steps=2, engine=engine)
        for batch in batches:
            learner.step(batch)
        ends.append(torch.cat([t.double().flatten() for t in own.state_dict().values()]))
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-7)
    learner.engine = "auto"
    assert type(learner._step.engines.select(batches[0])) is LoopEngine
