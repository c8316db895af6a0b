"""Invalid input is refused with what was expected, before anything is written."""

from __future__ import annotations

import re

import pytest
import torch

from fastmeta import ops

G = torch.zeros(3, 5)
STATS = torch.rand(3, 1, 3)
BAD = {
    "gram of a vector": (lambda: ops.gram(torch.zeros(5)), "expected a (tasks, parameters) matrix"),
    "gram of integers": (
        lambda: ops.gram(G.long()),
        "float32, float64",
    ),
    "bounds that fall": (lambda: ops.gram(G, [0, 4, 2, 5]), "must rise from 0"),
    "bounds that end early": (lambda: ops.gram(G, [0, 4]), "the number of columns, 5"),
    "bounds of one number": (lambda: ops.gram(G, [0]), "must rise from 0"),
    "row_similarity of two shapes": (lambda: ops.row_similarity(G, G[:2]), "shape"),
    "row_similarity of two dtypes": (lambda: ops.row_similarity(G, G.double()), "dtype"),
    "mean_similarity of a cube": (lambda: ops.mean_similarity(G[None]), "matrix"),
    "combine with no buffer": (lambda: ops.combine([], torch.ones(3)), "got none"),
    "combine with three": (lambda: ops.combine([G] * 3, torch.ones(3, 1, 3)), "one or two"),
    "combine with few weights": (lambda: ops.combine(G, torch.ones(2)), "coef"),
    "combine with double weights": (lambda: ops.combine(G, torch.ones(3).double()), "coef"),
    "combine_ into too little": (lambda: ops.combine_([torch.zeros(4)], G, torch.ones(3)), "5"),
    "combine_ into gaps": (
        lambda: ops.combine_([torch.zeros(10)[::2]], G, torch.ones(3)),
        "contiguous",
    ),
    "pack of nothing": (lambda: ops.pack([]), "at least one tensor"),
    "pack of uneven rows": (lambda: ops.pack([G, G, G], 2), "row"),
    "pack of two sizes": (lambda: ops.pack([G, G[:2]], 2), "size"),
    "pack of two dtypes": (lambda: ops.pack([G, G.double()]), "dtype"),
    "pack_ into another size": (lambda: ops.pack_(torch.zeros(1, 4), [G]), "4"),
    "pack_ into rows that are one": (
        lambda: ops.pack_(torch.zeros(1, 15).expand(3, 15), [G] * 3),
        "share memory",
    ),
    "pack_ of nowhere": (lambda: ops.pack_(torch.zeros(1, 15), [G.to("meta")]), "cpu and meta"),
    "unpack_ of nowhere": (
        lambda: ops.unpack_([torch.zeros(3)], G[:1, :3].to("meta")),
        "one device",
    ),
    "combine_ of nowhere": (
        lambda: ops.combine_([torch.zeros(5)], G.to("meta"), torch.ones(3)),
        "one device",
    ),
    "inner_step_ of nowhere": (
        lambda: ops.inner_step_([torch.zeros(3, 5)], [G.to("meta")], 0.1),
        "one device",
    ),
    "unpack_ into gaps": (lambda: ops.unpack_([torch.zeros(30)[::2]], G.view(1, 15)), "contiguous"),
    "inner_step of nothing": (lambda: ops.inner_step([], [], 0.1), "at least one parameter"),
    "inner_step of two dtypes, one without a gradient": (
        lambda: ops.inner_step([G.float(), G.double()], [None, G.double()], 0.1),
        "one dtype",
    ),
    "inner_step with few gradients": (lambda: ops.inner_step([G, G], [G], 0.1), "as many"),
    "inner_step with few flags": (lambda: ops.inner_step([G], [G], 0.1, [True, False]), "flags"),
    "inner_step of two shapes": (lambda: ops.inner_step([G], [G[:2]], 0.1), "shape"),
    "inner_step with a flat gradient": (lambda: ops.inner_step([G], [G.view(15)], 0.1), "shape"),
    "inner_step with flat rates": (
        lambda: ops.inner_step([G], [G], [torch.ones(15)]),
        "the parameter's shape",
    ),
    "adamw_step of nothing": (
        lambda: ops.adamw_step([], [], [], [], lr=0.1, step=0),
        "at least one tensor",
    ),
    "adamw_step with few moments": (
        lambda: ops.adamw_step([G], [G], [], [G], lr=0.1, step=0),
        "lists of one length",
    ),
    "adamw_step with a flat gradient": (
        lambda: ops.adamw_step([G], [G.view(15)], [G], [G], lr=0.1, step=0),
        "list 1 (15) must have the shape (3, 5)",
    ),
    "adamw_adjoint of two dtypes": (
        lambda: ops.adamw_adjoint([G], [G], [G], [G.double()], [G], [G], lr=0.1, step=0),
        "one dtype",
    ),
    "hvp_perturb with a column of radii": (
        lambda: ops.hvp_perturb(G, G, torch.ones(3, 1)),
        "one value per task",
    ),
    "hvp_perturb of two shapes": (lambda: ops.hvp_perturb(G, G[:2], torch.ones(3)), "one shape"),
    "hvp_perturb with few radii": (
        lambda: ops.hvp_perturb(G, G, torch.ones(2)),
        "one value per task",
    ),
    "hvp_difference with few rates": (
        lambda: ops.hvp_difference(G, G, G, torch.ones(3), torch.ones(2)),
        "one value, or one for each column",
    ),
    "gsl with few weights": (
        lambda: ops.gsl_coefficients(STATS, torch.ones(2), torch.ones(1)),
        "weight",
    ),
    "gsl with other scalars": (
        lambda: ops.gsl_coefficients(STATS[..., :2], torch.ones(3), torch.ones(1)),
        "3",
    ),
    "agreement of other scalars": (lambda: ops.agreement_weights(STATS[:, 0]), "2"),
}

MEMORY = torch.arange(40.0)
ROWS, COEF = MEMORY[:15].view(3, 5), torch.ones(3)
OVERLAPS = {
    "pack_ of the row's own end": lambda: ops.pack_(MEMORY[None, :8], [MEMORY[1:9]]),
    "pack_ of parts exchanged": lambda: ops.pack_(MEMORY[None, :8], [MEMORY[4:8], MEMORY[:4]]),
    "unpack_ into its source": lambda: ops.unpack_([MEMORY[1:9]], MEMORY[None, :8]),
    "unpack_ twice": lambda: ops.unpack_([MEMORY[20:24], MEMORY[23:27]], MEMORY[None, :8]),
    "combine_ into a row": lambda: ops.combine_([ROWS[1]], ROWS, COEF),
    "combine_ into the weights": lambda: ops.combine_([MEMORY[20:25]], ROWS, MEMORY[24:27]),
    "combine_ twice": lambda: ops.combine_([MEMORY[20:23], MEMORY[22:24]], ROWS, COEF),
    "inner_step_ by what it moves": lambda: ops.inner_step_([MEMORY[:4]], [MEMORY[2:6]], 0.1),
    "inner_step_ twice": lambda: ops.inner_step_([MEMORY[:4], MEMORY[3:6]], [None, None], 0.1),
    "inner_step_ of its own rate": lambda: ops.inner_step_([MEMORY[:4]], [G[0, :4]], MEMORY[3]),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlapping_inputs_and_outputs(name: str) -> None:
    with pytest.raises(RuntimeError, match="share memory with each other or with what is read"):
        OVERLAPS[name]()
    assert torch.equal(MEMORY, torch.arange(40.0))


def test_adjacent_memory_and_in_place_targets_are_allowed() -> None:
    memory = torch.arange(20.0)
    ops.pack_(memory[None, :8], [memory[:3], memory[8:12], memory[7:8], memory[:0]])
    assert memory[:8].tolist() == [0, 1, 2, 8, 9, 10, 11, 7]
    ops.inner_step_([memory[8:10], memory[10:11]], [memory[8:10], memory[12:13]], 0.5)
    assert memory[8:11].tolist() == [4, 4.5, 4]
    ops.combine_([memory[15:17], memory[12:12], memory[17:20]], memory[None, :5], memory[11:12])
    assert memory[15:].tolist() == [0, 11, 22, 88, 99]


@pytest.mark.parametrize("name", BAD)
def test_message(name: str) -> None:
    call, part = BAD[name]
    with pytest.raises(RuntimeError, match=re.escape(part)) as caught:
        call()
    assert str(caught.value).startswith("fastmeta: ")


def test_options() -> None:
    with pytest.raises(ValueError, match="magnitude must be one of none, norm-match"):
        ops.gsl_coefficients(STATS, torch.ones(3), torch.ones(1), magnitude="big")
    with pytest.raises(ValueError, match="tau must be positive"):
        ops.gsl_task_weights(torch.rand(3, 2), tau=0)
    with pytest.raises(ValueError, match="'linear' or 'softmax'"):
        ops.gsl_task_weights(torch.rand(3, 2), rule="best")
    with pytest.raises(ValueError, match="one for each of the 2 tensors"):
        ops.inner_step([G, G], [G, G], torch.ones(3))
    for alpha in ([torch.ones(1)], "3", [0.1, 0.2]):
        with pytest.raises(ValueError, match="one tensor for each of the 2 parameters; got"):
            ops.inner_step([G, G], [G, None], alpha)  # type: ignore[arg-type]


def test_a_failing_call_writes_nothing() -> None:
    theta, flat = [torch.ones(5), torch.ones(3)], torch.ones(1, 8)
    with pytest.raises(RuntimeError):
        ops.inner_step_(theta, [torch.ones(5), torch.ones(4)], 0.1)
    with pytest.raises(RuntimeError):
        ops.pack_(flat, [torch.zeros(5), torch.zeros(4)])
    with pytest.raises(RuntimeError):
        ops.unpack_(theta, torch.zeros(1, 9))
    with pytest.raises(RuntimeError):
        ops.combine_(theta, torch.zeros(2, 9), torch.ones(2))
    assert all((t == 1).all() for t in (*theta, flat))


@pytest.mark.parametrize("tasks", [0, 1])
def test_no_tasks_or_no_columns(tasks: int) -> None:
    empty = torch.zeros(tasks, 0)
    assert ops.gram(empty).shape == (1, tasks, tasks)
    assert ops.mean_similarity(empty).shape == (tasks, 2)
    assert ops.row_similarity(empty, empty).shape == (tasks, 1, 3)
    assert ops.combine(empty, torch.ones(tasks)).shape == (0,)
    none = torch.zeros(0, 5)
    assert torch.equal(ops.combine(none, torch.ones(0)), torch.zeros(5))
    assert ops.gram(none).shape == (1, 0, 0)
    assert ops.agreement_weights(ops.mean_similarity(none)).shape == (0,)
    assert ops.row_similarity(none, none).shape == (0, 1, 3)
