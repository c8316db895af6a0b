"""Similarity + weight + combine against their composition in torch, and the bandwidth floor.

Guards the goals of the packed ops on two cores: at least 4x (32 tasks of a Conv-4) and 2x (16 tasks
of 8M parameters) the naive composition, and at least 75 % of what the memory's bandwidth allows.
Rows that fit into the last-level cache can beat that floor, so the cache's own is shown too. Run
with ``pytest benchmarks/test_ops.py -s``.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from measure import interleaved, reader, report

from fastmeta import FlatLayout, ops

# (tasks, parameters, least speed-up over the naive composition)
SIZES = [(32, 113_000, 4.0), (16, 8_000_000, 2.0)]


def parameter_shapes(size: int) -> list[torch.Size]:
    """A parameter list like a Conv-4's: 17 tensors from a bias to most of the weights."""
    small = [torch.Size((64,))] * 12 + [torch.Size((64, 9))] + [torch.Size((5, 64))]
    rest = size - sum(s.numel() for s in small)
    third = rest // 3
    return [*small, torch.Size((third,)), torch.Size((third,)), torch.Size((rest - 2 * third,))]


def naive(rows: torch.Tensor, out: list[torch.Tensor]) -> None:
    """Cosine with the mean gradient as task weights, in torch's own words."""
    mean = rows.mean(0, keepdim=True)
    weights = F.cosine_similarity(rows, mean, dim=1)
    combined = (weights / weights.abs().sum()) @ rows
    for target, part in zip(out, combined.split([t.numel() for t in out]), strict=True):
        target.copy_(part.view_as(target))


def tuned(rows: torch.Tensor, out: list[torch.Tensor]) -> None:
    """The same weights up to scale from three matrix-vector passes: the strongest torch we know."""
    dots = rows @ rows.sum(0)
    weights = dots / torch.linalg.vector_norm(rows, dim=1)
    combined = (weights / weights.abs().sum()) @ rows
    for target, part in zip(out, combined.split([t.numel() for t in out]), strict=True):
        target.copy_(part.view_as(target))


def compiled(rows: torch.Tensor, out: list[torch.Tensor]) -> None:
    """fastmeta: two passes over the rows, written straight into the tensors."""
    stats = ops.mean_similarity(rows)
    cosines = stats[:, 0] / stats[:, 1].sqrt()
    ops.combine_(out, rows, cosines / cosines.abs().sum())


@pytest.mark.parametrize(("tasks", "size", "goal"), SIZES, ids=lambda v: str(v))
def test_similarity_weight_combine(benchmark, tasks: int, size: int, goal: float) -> None:
    rows = torch.randn(tasks, size) + 0.3 * torch.randn(size)
    beyond_caches = torch.randn(64_000_000)  # its read is the bandwidth of the memory
    out = {n: [torch.empty(s) for s in parameter_shapes(size)] for n in ("naive", "tuned", "ours")}
    naive(rows, out["naive"])
    tuned(rows, out["tuned"])
    compiled(rows, out["ours"])
    for mine, reference in zip(out["ours"], out["naive"], strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-5)

    timings = interleaved(
        {
            "torch, naive": lambda: naive(rows, out["naive"]),
            "torch, three matrix passes": lambda: tuned(rows, out["tuned"]),
            "fastmeta": lambda: compiled(rows, out["ours"]),
            "read these rows": reader(rows),
            "read 256 MB": reader(beyond_caches),
        }
    )
    mine = timings["fastmeta"].median
    speedup = timings["torch, naive"].median / mine
    notes = [f"fastmeta: {speedup:.1f}x the naive composition"]
    share = {}
    for name, buffer in (("read 256 MB", beyond_caches), ("read these rows", rows)):
        # Two reads of the rows and one write of the result, at the bandwidth of that read.
        rate = buffer.nbytes / timings[name].median
        floor = (2 * rows.nbytes + rows.nbytes / tasks) / rate
        share[name] = floor / mine
        notes.append(
            f"floor {floor * 1e3:.3f} ms (two reads, one write, at the {rate / 1e9:.0f} GB/s of "
            f"{name!r}): {floor / mine:.0%} of it reached"
        )
    report(f"({tasks}, {size}) float32, packed rows", timings, "fastmeta", "\n".join(notes))
    benchmark.extra_info.update(speedup=speedup, of_floor=share["read 256 MB"])
    benchmark.pedantic(compiled, (rows, out["ours"]), rounds=9, warmup_rounds=1)
    assert speedup >= goal
    assert share["read 256 MB"] >= 0.75


@pytest.mark.parametrize(("tasks", "size", "goal"), SIZES, ids=lambda v: str(v))
def test_from_gradient_lists(benchmark, tasks: int, size: int, goal: float) -> None:
    """The same from per-task lists of gradients, as backward leaves them: flatten or pack first."""
    shapes = parameter_shapes(size)
    grads = [torch.randn(s) for _ in range(tasks) for s in shapes]
    each = len(shapes)
    out = [torch.empty(s) for s in shapes]
    rows = torch.empty(tasks, size)

    def with_torch() -> None:
        flat = [
            torch.cat([g.reshape(-1) for g in grads[i * each : (i + 1) * each]])
            for i in range(tasks)
        ]
        naive(torch.stack(flat), out)

    def with_fastmeta() -> None:
        ops.pack_(rows, grads)
        compiled(rows, out)

    timings = interleaved({"torch, flatten + naive": with_torch, "fastmeta": with_fastmeta})
    speedup = timings["torch, flatten + naive"].median / timings["fastmeta"].median
    report(f"({tasks}, {size}) float32, from gradient lists", timings, "fastmeta")
    benchmark.extra_info.update(speedup=speedup)
    benchmark.pedantic(with_fastmeta, rounds=9, warmup_rounds=1)
    assert speedup >= goal


def test_gram(benchmark) -> None:
    """The whole Gram matrix, which the pairwise aggregators need, against a matrix product."""
    rows = torch.randn(32, 113_000)
    timings = interleaved(
        {"torch: g @ g.T": lambda: rows @ rows.T, "fastmeta": lambda: ops.gram(rows)}
    )
    flops = rows.shape[0] * (rows.shape[0] + 1) * rows.shape[1]
    rate = flops / timings["fastmeta"].median / 1e9
    report("(32, 113000) Gram matrix", timings, "fastmeta", f"fastmeta: {rate:.0f} GFLOP/s")
    benchmark.pedantic(ops.gram, (rows,), rounds=9, warmup_rounds=1)
    torch.testing.assert_close(ops.gram(rows)[0], rows @ rows.T, rtol=1e-3, atol=0.5)


def test_inner_step(benchmark) -> None:
    """The inner step of four tasks of a Conv-4 at once, against torch's foreach ops."""
    shapes = parameter_shapes(113_000)
    theta = [torch.randn(4, *s) for s in shapes]
    grad = [torch.randn(4, *s) for s in shapes]
    rate = torch.tensor(0.4)

    def foreach() -> list[torch.Tensor]:
        return torch._foreach_sub(theta, torch._foreach_mul(grad, rate))

    timings = interleaved(
        {
            "torch, a loop": lambda: [t - rate * g for t, g in zip(theta, grad, strict=True)],
            "torch, foreach": foreach,
            "fastmeta": lambda: ops.inner_step(theta, grad, rate),
        }
    )
    report("inner step, 4 tasks x 17 tensors, 113k parameters", timings, "fastmeta")
    benchmark.pedantic(ops.inner_step, (theta, grad, rate), rounds=9, warmup_rounds=1)
    layout = FlatLayout.of(theta)
    torch.testing.assert_close(
        ops.pack(ops.inner_step(theta, grad, rate)), ops.pack(foreach()), rtol=1e-6, atol=1e-6
    )
    assert layout.size == 4 * 113_000
