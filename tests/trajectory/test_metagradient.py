"""Meta-gradients of training runs against autograd of the unrolled run."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from fastmeta.adaptation import SGD, Adam
from fastmeta.trajectory import FirstOrder, Metagradient, metagradient
from tests.trajectory.problems import OPTIMIZERS, Problem


def leaves(found: Metagradient) -> list[Tensor]:
    return tree_leaves([found.params, found.meta])


def check(problem: Problem, name: str, outer: Any = None, **options: Any) -> Metagradient:
    torch.manual_seed(3)
    expected = problem.unrolled(OPTIMIZERS[name], outer)
    after = torch.rand(1)
    torch.manual_seed(3)
    found = metagradient(
        problem.inner,
        problem.outer,
        problem.params,
        problem.meta,
        problem.batches,
        optimizer=OPTIMIZERS[name](problem.meta),
        outer_batches=outer,
        **options,
    )
    assert torch.rand(1) == after
    scale = max(t.abs().sum().item() for t in expected)
    for mine, its in zip(leaves(found), expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9 * scale)
    return found


@pytest.mark.parametrize("memory", ["all", "sqrt", "log", 6])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_autograd_of_the_unrolled_run(name: str, memory: Any) -> None:
    check(Problem(12), name, memory=memory)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_forward_over_reverse(name: str) -> None:
    check(Problem(5), name, memory=3, hvp="forward")


@pytest.mark.parametrize("hvp", ["reverse", "forward"])
@pytest.mark.parametrize("parts", [2, 3])
def test_micro_batches(parts: int, hvp: Any) -> None:
    """The mean over parts of the batch, each with a dropout mask of its own."""
    check(Problem(4, parts=parts), "adamw", memory=2, hvp=hvp, micro_batches=parts)


def test_micro_batches_with_other_options() -> None:
    """Without dropout they are the whole batch for losses that are means over examples."""
    problem = Problem(5, dropout=0)
    for options in (
        {"method": FirstOrder()},
        {"hvp": "difference"},
        {"outer_batches": {2: 1.0, 5: 2.0}},
    ):
        whole, parts = run(problem, **options), run(problem, micro_batches=3, **options)
        torch.testing.assert_close(leaves(parts), leaves(whole), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(parts.inner_losses, whole.inner_losses)
    with pytest.raises(ValueError, match=r"micro_batches=4 must divide .*; got shape \(6, 4\)"):
        run(problem, micro_batches=4)


def test_micro_batches_have_one_graph_at_a_time() -> None:
    """Activations of one micro-batch alone are alive, in the plain pass and in the sweep."""
    model = nn.Sequential(nn.Linear(3, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh())
    batches = [torch.randn(64, 3) for _ in range(2)]

    def loss(params: Any, _meta: Any, rows: Tensor) -> Tensor:
        return functional_call(model, params, (rows,)).square().mean()

    most = {}
    for count in (1, 8):
        alive: dict[int, int] = {}
        peak = [0]

        def pack(t: Tensor, alive: Any = alive, peak: Any = peak, rows: int = 64 // count) -> Any:
            if t.dim() != 2 or len(t) != rows:
                return t
            key = id(kept := [t])  # exists as long as the graph
            alive[key] = t.numel()
            peak[0] = max(peak[0], sum(alive.values()))
            return Saved(kept, lambda: alive.pop(key))

        with torch.autograd.graph.saved_tensors_hooks(pack, Saved.unpack):
            metagradient(
                loss,
                lambda p, _: sum(t.sum() for t in p.values()),
                dict(model.named_parameters()),
                None,
                batches,
                optimizer=Adam(0.01),
                micro_batches=count,
            )
        assert not alive
        most[count] = peak[0]
    assert 0 < most[8] <= most[1] / 8


class Saved:
    """A tensor that a graph keeps; reports when the graph is freed."""

    def __init__(self, kept: list[Tensor], freed: Callable[[], Any]) -> None:
        self.kept = kept
        weakref.finalize(self, freed)

    @staticmethod
    def unpack(packed: Any) -> Tensor:
        return packed.kept[0] if isinstance(packed, Saved) else packed


@pytest.mark.parametrize("memory", ["all", "sqrt", 2])
@pytest.mark.parametrize("hvp", ["reverse", "forward"])
def test_offloaded_states_are_the_same_bits(memory: Any, hvp: Any, tmp_path: Path) -> None:
    results = []
    for offload in (None, "cpu", tmp_path):
        torch.manual_seed(4)
        results.append(run(problem := Problem(7), memory=memory, hvp=hvp, offload=offload))
        assert len(problem.batches) == 7
        assert not list(tmp_path.iterdir())  # and nothing is left behind
    for other in results[1:]:
        torch.testing.assert_close(leaves(other), leaves(results[0]), rtol=0, atol=0)


@pytest.mark.parametrize("memory", ["all", "sqrt", "log"])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 9])
def test_any_number_of_steps(steps: int, memory: Any) -> None:
    found = check(Problem(steps), "adamw", memory=memory)
    assert found.inner_losses.shape == (steps,)
    assert found.state.step == steps


@pytest.mark.parametrize("memory", ["all", "sqrt", "log"])
def test_outer_losses_along_the_run(memory: Any) -> None:
    found = check(Problem(7), "learned adamw", {0: 0.5, 3: 1.0, 6: 2.0, 7: 0.25}, memory=memory)
    assert list(found.outer_losses) == [0, 3, 6, 7]
    torch.testing.assert_close(found.outer_loss, sum(found.outer_losses.values()))
    check(Problem(5), "momentum", {2: 1.0}, memory=memory)  # none at the end


def run(problem: Problem, **options: Any) -> Metagradient:
    options = {"optimizer": Adam(0.01, eps=1e-3), "batches": problem.batches, **options}
    options = {"params": problem.params, "meta": problem.meta, **options}
    return metagradient(problem.inner, problem.outer, **options)


def test_a_run_is_continued() -> None:
    """Two windows with the inner optimizer's state carried on are one run."""
    problem = Problem(9, dropout=0)
    whole = run(problem)
    first = run(problem, batches=problem.batches[:4])
    second = run(problem, batches=problem.batches[4:], params=first.final_params, state=first.state)
    torch.testing.assert_close(second.final_params, whole.final_params, rtol=0, atol=0)
    torch.testing.assert_close(second.outer_loss, whole.outer_loss, rtol=0, atol=0)
    assert second.state.step == 9
    last = run(problem, truncate=5)
    torch.testing.assert_close(leaves(last), leaves(second), rtol=0, atol=0)
    torch.testing.assert_close(leaves(run(problem, truncate=20)), leaves(whole), rtol=0, atol=0)


def test_first_order_leaves_out_the_hessians() -> None:
    """With one inner step nothing but the Hessian of this step is left out."""
    problem = Problem(1, dropout=0)
    exact, first = run(problem), run(problem, method=FirstOrder())
    torch.testing.assert_close(first.meta, exact.meta)
    plain = run(problem, method=FirstOrder(), optimizer=SGD(0.1))
    moved = run(problem, optimizer=SGD(0.1)).final_params
    at_end = run(problem, batches=[], params=moved, optimizer=SGD(0.1))
    torch.testing.assert_close(plain.params, at_end.params)
    without = metagradient(
        lambda p, _, batch: problem.inner(p, problem.meta, batch),
        lambda p, _: problem.outer(p, problem.meta),
        problem.params,
        None,
        problem.batches,
        optimizer=SGD(0.1),
        method=FirstOrder(),
    )
    torch.testing.assert_close(without.params, plain.params)


def test_central_differences() -> None:
    problem = Problem(5)
    results = []
    for hvp in ("reverse", "difference"):
        torch.manual_seed(5)
        results.append(leaves(run(problem, hvp=hvp, memory="sqrt")))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


def test_buffers_are_replayed() -> None:
    """BatchNorm's statistics, and a buffer that the loss depends on."""
    problem = Problem(6, dropout=0)
    count = torch.zeros(()).double()

    def inner(params: Any, meta: Any, batch: Any) -> Tensor:
        count.add_(1)
        return problem.inner(params, meta, batch) * (1 + 0.1 * count)

    def with_factor(params: Any, meta: Any, batch: Any) -> Tensor:
        return problem.inner(params, meta, batch) * (1 + 0.1 * (batch[3] + 1))

    for memory in ("all", "sqrt", "log"):
        found, expected = [
            metagradient(
                loss,
                problem.outer,
                problem.params,
                problem.meta,
                problem.batches,
                optimizer=SGD(0.1, momentum=0.9),
                memory=memory,
                buffers=buffers,
            )
            for loss, buffers in ((inner, [count.zero_()]), (with_factor, []))
        ]
        assert count == 6
        torch.testing.assert_close(leaves(found), leaves(expected))


def test_structures_and_iterables() -> None:
    """Parameters in lists and tuples, no meta-parameters, and batches from a generator."""
    x, y = torch.randn(5, 3).double(), torch.randn(5).double()

    def inner(params: Any, _meta: Any, scale: float) -> Tensor:
        weight, (bias,) = params
        return scale * ((x @ weight + bias - y) ** 2).mean()

    def outer(params: Any, _meta: Any) -> Tensor:
        return inner(params, None, 1.0)

    params = [torch.randn(3).double(), (torch.zeros(()).double(),)]
    scales = [0.5, 1.0, 2.0]
    found = metagradient(inner, outer, params, None, iter(scales), optimizer=SGD(0.1))
    again = metagradient(inner, outer, params, (), scales, optimizer=SGD(0.1), memory="log")
    torch.testing.assert_close(found.params, again.params)
    assert found.meta is None
    assert again.meta == ()
    assert isinstance(found.params[1], tuple)
    assert repr(found) == f"Metagradient(outer_loss={found.outer_loss.item():.6g}, inner_steps=3)"


def test_invalid_arguments() -> None:
    problem = Problem(3)
    cases = [
        ({"params": {}}, "params holds no tensor"),
        ({"params": {"a": 3}}, r"params\['a'\] is int; expected floating-point"),
        ({"meta": [torch.arange(3)]}, r"meta\[0\] is torch.int64"),
        ({"outer_batches": {}}, "holds no batch"),
        ({"outer_batches": {4: 1.0}}, "from 0 to 3"),
        (
            {"outer_batches": {1: 1.0}, "truncate": 1},
            "from 2 to 3, the steps that are differentiated",
        ),
        ({"memory": "some"}, "memory must be one of all, sqrt, log"),
        ({"memory": 1}, "memory must be an integer of at least 2"),
        ({"micro_batches": 0}, "micro_batches must be an integer of at least 1"),
        (
            {"offload": "nowhere"},
            "offload must be None, 'cpu' or an existing folder; got 'nowhere'",
        ),
        ({"truncate": 0}, "truncate must be an integer of at least 1"),
        ({"hvp": "auto"}, "hvp must be one of reverse, forward, difference"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            run(problem, **options)
    with pytest.raises(ValueError, match=r"inner_loss must return a scalar tensor; got \(2,\)"):
        metagradient(
            lambda *_: torch.zeros(2), problem.outer, problem.params, (), [0], optimizer=SGD(0.1)
        )
