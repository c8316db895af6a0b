"""The sequence step as it runs on CUDA, here on the CPU: values, checks and replayed graphs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.ops import _cuda_graphs, sequence
from fastmeta.ops._sequence_plan import Plan, run_plan
from fastmeta.reference.mlp import LOSSES
from tests.helpers.recorded_graphs import RecordedCuda, Stream, sequence_step_as_on_cuda
from tests.helpers.sequence_cases import (
    NETWORKS,
    ORDERS,
    TOLERANCE,
    check,
    examples,
    network,
    options,
)
from tests.ops.test_sequence import BAD, problem


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> RecordedCuda:
    return sequence_step_as_on_cuda(monkeypatch)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_matches_the_reference(loss: str, name: str) -> None:
    for order in ORDERS:
        for steps in (0, 1, 5) if order == "second order" else (3,):
            net, args = problem(name, loss)
            how = options(net, loss, order, steps)
            check(ops.sequence_step(*args, record_inner=steps > 0, **how), args, how)


@pytest.mark.parametrize("name", NETWORKS)
def test_matches_the_reference_in_float32(name: str) -> None:
    net, args = problem(name, dtype=torch.float32)
    for order in ("second order", "all similarities"):
        how = options(net, order=order, steps=1)
        check(ops.sequence_step(*args, **how), args, how)


@pytest.mark.parametrize("name", NETWORKS)
def test_matches_the_compiled_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, args = problem(name, shots=(9, 4))
    args[2][:, :2] = -100
    how = options(net, order="all similarities") | {"record_inner": True}
    found = ops.sequence_step(*args, **how)
    monkeypatch.setattr(sequence, "_ONE_CALL", ("cpu",))
    for x, y in zip(found, ops.sequence_step(*args, **how), strict=True):  # statistics as well
        assert x.shape == y.shape
        assert (x - y).norm() <= TOLERANCE[torch.float64] * y.norm()


def test_targets_that_do_not_count_and_invalid_ones() -> None:
    net, args = problem("pooled", tasks=4)
    args[2][1] = -100  # no target of this task counts, so that it is not adapted
    args[4][2, 0] = 3  # not a class
    found = ops.sequence_step(*args, **options(net))
    assert found.support_loss.isnan().tolist() == [False, True, False, False]
    assert found.query_loss.isnan().tolist() == [False, False, True, False]
    assert found.meta_gradients.isnan().any(1).tolist() == [False, False, True, False]
    alone = ops.sequence_step(*args[:2], args[2], *args[3:], **options(net, steps=0))
    torch.testing.assert_close(found.query_loss[1], alone.query_loss[1])


@pytest.mark.parametrize("name", NETWORKS)
def test_no_value_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(plan: Plan, params: Any, tasks: Any, *_: object) -> list[Tensor]:
        return run_plan(plan, params, tasks, params[0].new_empty(4))

    monkeypatch.setattr(sequence, "kernel_devices", lambda: ("meta",))
    monkeypatch.setattr(sequence, "_launches", run)
    net, (params, *tasks) = problem(name)
    params, tasks = [p.to("meta") for p in params], [t.to("meta") for t in tasks]  # no values
    for order in ("first order", "all similarities of all layers"):
        found = ops.sequence_step(params, *tasks, record_inner=True, **options(net, order=order))
        assert {t.device.type for t in found} == {"meta"}


@pytest.mark.parametrize("name", [name for name in BAD if name != "a class too many"])
def test_invalid_arguments_are_refused(name: str) -> None:
    net, args = problem("pooled")
    how = options(net) | {"differentiated": None}
    change, message = BAD[name]
    change(args, how)
    with pytest.raises(RuntimeError, match=r"fastmeta: sequence_step: .*") as caught:
        ops.sequence_step(*args, **how)
    assert message in str(caught.value)


def test_unequal_numbers_of_tasks_are_refused() -> None:
    net, args = problem("pooled")
    args[3] = args[3][:2]
    with pytest.raises(RuntimeError, match=r"same number of tasks .* got \[3, 3, 2, 3\]"):
        ops.sequence_step(*args, **options(net))


def test_no_tasks() -> None:
    net, args = problem("pooled")
    found = ops.sequence_step(args[0], *(t[:0] for t in args[1:]), **options(net))
    assert found.meta_gradients.shape == (0, sum(p.numel() for p in net.params))


def test_the_second_call_is_captured_and_later_ones_replay_it(cuda: RecordedCuda) -> None:
    workspace = ops.Workspace()
    net = network("pooled")
    how = options(net, order="all similarities")
    found = []
    for _ in range(4):
        for p in net.params:
            p.mul_(0.9)  # in place, as optimizers do
        tasks = examples(net, "cross_entropy")
        results = ops.sequence_step(
            net.params, *tasks, workspace=workspace, record_inner=True, **how
        )
        found.append((results, [[p.clone() for p in net.params], *tasks]))
    assert cuda.replays == [3]
    for results, args in found:  # none overwritten by a later replay
        check(results, args, how)


def test_rates_may_vary_between_replays(cuda: RecordedCuda) -> None:
    workspace = ops.Workspace()
    net, args = problem("strided")
    for lr, lam_d, lam_c in ((0.1, 0.2, 0.3), (0.05, 0.4, -0.1), (0.2, 0.0, 0.5), (0.1, 1.0, 0.1)):
        how = options(net, order="all similarities") | {"lr": lr, "lam_d": lam_d, "lam_c": lam_c}
        check(ops.sequence_step(*args, workspace=workspace, **how), args, how)
    assert cuda.replays == [3]


def test_whatever_a_graph_depends_on_is_captured_anew(
    cuda: RecordedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = ops.Workspace()
    net, args = problem("odd pools")
    how = options(net)

    def moved(args: list[Any]) -> list[Any]:
        return [[p.clone() for p in args[0]], *args[1:]]

    cases: list[tuple[list[Any], dict[str, Any]]] = [
        (args, how),
        ([args[0], *(t[:2] for t in args[1:])], how),  # tasks
        ([*args[:3], args[3][:, :4], args[4][:, :4]], how),  # queries
        (moved(args), how),
        (args, how | {"steps": 3}),
        (args, how | {"record_inner": True}),
        (args, how | {"lam_c": 0.2}),
        (args, options(net, order="head")),
    ]
    assert len(cases) == _cuda_graphs.MAX_GRAPHS
    for _ in range(3):
        for case, options_of_case in cases:
            check(
                ops.sequence_step(*case, workspace=workspace, **options_of_case),
                case,
                {k: v for k, v in options_of_case.items() if k != "record_inner"},
            )
    assert cuda.replays == [2] * len(cases)
    assert len(set(map(id, cuda.pools))) == 1
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    for _ in range(2):
        ops.sequence_step(*args, workspace=workspace, **how)
    assert cuda.replays[len(cases) :] == [1]


def test_the_graphs_used_last_are_kept(cuda: RecordedCuda) -> None:
    workspace = ops.Workspace()
    net, args = problem("strided", shots=(2, _cuda_graphs.MAX_GRAPHS + 3))

    def run(queries: int) -> None:
        part = [*args[:3], *(t[:, :queries] for t in args[3:])]
        ops.sequence_step(*part, workspace=workspace, **options(net, steps=1))

    for queries in range(1, _cuda_graphs.MAX_GRAPHS + 2):
        run(1)
        run(1 + queries)
    assert len(workspace.graphs._calls) == _cuda_graphs.MAX_GRAPHS
    assert len(cuda.graphs) == 1  # the others occurred once
    run(2)  # forgotten
    assert len(cuda.graphs) == 1
    run(1)
    assert cuda.replays == [_cuda_graphs.MAX_GRAPHS + 1]


def test_within_a_capture_of_the_caller(cuda: RecordedCuda) -> None:
    workspace = ops.Workspace()
    net, args = problem("strided")
    cuda.capturing = True
    for _ in range(3):
        check(ops.sequence_step(*args, workspace=workspace, **options(net)), args, options(net))
    assert not cuda.graphs


def test_calls_on_another_stream_wait_for_the_last_one(cuda: RecordedCuda) -> None:
    workspace = ops.Workspace()
    net, args = problem("strided")
    streams = [Stream(), Stream()]
    for stream in (*streams, streams[1], streams[0]):
        cuda.stream = stream
        ops.sequence_step(*args, workspace=workspace, **options(net))
    assert streams[1].waited_for[0] is streams[0]
    assert streams[0].waited_for[-1] is streams[1]


def test_a_failed_capture_is_reported_and_tried_again(
    cuda: RecordedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = ops.Workspace()
    net, args = problem("strided")

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    ops.sequence_step(*args, workspace=workspace, **options(net))
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "graph", fail)
        with pytest.raises(RuntimeError, match="not permitted"):
            ops.sequence_step(*args, workspace=workspace, **options(net))
    check(ops.sequence_step(*args, workspace=workspace, **options(net)), args, options(net))
    assert cuda.replays == [1]


def test_a_copy_of_a_workspace_is_empty(cuda: RecordedCuda) -> None:
    workspace = ops.Workspace()
    net, args = problem("strided")
    for _ in range(2):
        ops.sequence_step(*args, workspace=workspace, **options(net))
    assert not copy.deepcopy(workspace).graphs._calls
