"""The emulation runs every CUDA kernel of the sources, and every compiled instance."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from fastmeta._testing import cuda

ROOT = Path(__file__).resolve().parents[2]
SOURCES, REGISTERS = ROOT / "csrc/cuda", ROOT / ".ci/registers.md"
DTYPES = {"float64": np.float64, "float32": np.float32, "float16": np.int16, "bfloat16": np.int16}
WIDE = {k: v for k, v in DTYPES.items() if v is not np.int16}  # supported by the other kernels


def run_packed(name: str) -> None:
    """The kernels over packed gradients and heads: two tasks, three columns."""
    accumulated = np.float64 if name == "float64" else np.float32

    def narrow(*shape: int) -> np.ndarray:
        return np.zeros(shape, DTYPES[name])

    def wide(*shape: int) -> np.ndarray:
        return np.zeros(shape, accumulated)

    g, row, bounds = narrow(2, 3), narrow(3), [0, 3]
    cuda.gram(name, g, bounds, wide(1, 2, 2), 0)
    cuda.row_similarity(name, g, g, bounds, wide(2, 1, 3), 0)
    cuda.mean_similarity(name, g, wide(2, 2), 0)
    for buffers in (1, 2):
        cuda.combine(name, [g] * buffers, wide(2, 1, buffers), bounds, [narrow(3)], 0)
    cuda.inner_step(name, [row], [row], [wide(1)], [False], [narrow(3)], 0)
    for inputs, outputs in ((4, 3), (6, 4)):
        out = [[narrow(3)] for _ in range(outputs)]
        cuda.adamw(name, [0.5] * 8, [[row]] * inputs, out, 0)
    cuda.hvp_perturb(name, g, g, wide(2), narrow(2, 3), narrow(2, 3), 0)
    cuda.hvp_difference(name, g, g, g, wide(2), wide(1), narrow(2, 3), 0)
    cuda.pack([row], [narrow(3)], 0)
    data = [narrow(2, 1, 3), narrow(2, 1, 1), narrow(2, 1, 1), narrow(2, 1, 3), narrow(2, 1, 3)]
    out, limits = [narrow(2, 1, 3) for _ in range(3)], (48_000, 2)
    cuda.head_similarity(name, data, 0, 1.0, 0.0, 0.0, *limits, out, wide(2, 3), 0)


def run_scalars_and_mlp(name: str) -> None:
    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, WIDE[name])

    options = (1.0, 0.0, 0, 1.0, 1e-12, 1e-5)
    cuda.gsl_coefficients(name, zeros(2, 1, 3), zeros(2), zeros(1), *options, zeros(2, 1, 2), 0)
    cuda.task_weights(name, zeros(2, 2), 0, 1.0, 0.0, 1.0, zeros(2), 0)
    data, out = [zeros(2, 1, 1)] * 4, [zeros(2, 1), zeros(0, 1), zeros(2), zeros(2), zeros(2, 1, 1)]
    cuda.mlp_step(name, [zeros(1, 1)], data, [], 0, 0.1, 1, [1], [1.0, 0.0, 0.0], 28_000, 2, out, 0)


def run_norm(name: str, channels: int, pool: bool) -> None:
    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, WIDE[name])

    def images() -> np.ndarray:
        return zeros(1, 2, 2, channels)

    def outputs() -> np.ndarray:
        return zeros(1, 1, 1, channels) if pool else images()

    def vector() -> np.ndarray:
        return zeros(1, channels)

    point = [images(), vector(), vector()]
    cuda.norm_forward(name, *point, 1e-3, pool, [outputs(), vector(), vector()], 0)
    point += [vector(), vector()]
    how = (*point, 1e-3, pool)
    cuda.norm_backward(name, outputs(), *how, [images(), vector(), vector()], 0)
    direction = [images(), vector(), vector()]
    cuda.norm_second(name, outputs(), direction, *how, [outputs(), images(), vector()], 0)


def run_attention(name: str, width: int, capability: int) -> None:
    heads = [np.zeros((1, 1, 1, width), DTYPES[name]) for _ in range(8)]
    stats = np.zeros((1, 1, 2, 1), np.float64 if name == "float64" else np.float32)
    out = [np.zeros((1, 1, 1, width), DTYPES[name]) for _ in range(9)]
    options = (None, True, True, 0, 0.5, capability)
    cuda.attention(name, heads, *options, [out[0], stats, *out[1:]], 0)


def run_block(name: str) -> None:
    def narrow(*shape: int) -> np.ndarray:
        return np.zeros(shape, DTYPES[name])

    def wide(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float64 if name == "float64" else np.float32)

    rows, weights = [narrow(1, 2, 3) for _ in range(4)], [narrow(1, 3) for _ in range(4)]
    sums = [narrow(1, 2, 3), narrow(1, 3), narrow(1, 3)]
    out = [narrow(1, 2, 3), wide(1, 2, 2), *sums, narrow(1, 2, 3), narrow(1, 2, 3), *sums]
    cuda.row_norm(name, name, [*rows, *weights], True, True, 1e-5, out, 0)
    cuda.activation(name, 3, [narrow(5)] * 4, True, [narrow(5) for _ in range(4)], 0)
    out = [wide(2), wide(2), narrow(2, 3), wide(2), wide(2), narrow(2, 3)]
    logits = [narrow(2, 3), narrow(2, 3), wide(2), wide(2)]
    cuda.cross_entropy(name, logits, np.zeros(2, np.int64), -100, 0.1, True, out, 0)


@pytest.fixture(scope="module")
def run() -> set[str]:
    """Names of the kernels that these calls run, with their template arguments."""
    for name in DTYPES:
        run_packed(name)
        run_block(name)
        run_attention(name, 32, 75)
    for name, width in itertools.product(DTYPES.keys() - WIDE.keys(), (32, 64, 96, 128)):
        run_attention(name, width, 80)
    for name in WIDE:
        run_scalars_and_mlp(name)
    for name, channels, pool in itertools.product(WIDE, (1, 16), (False, True)):
        run_norm(name, channels, pool)
    return cuda.kernels_run()


def test_every_kernel_of_the_sources(run: set[str]) -> None:
    text = "".join(path.read_text() for path in sorted(SOURCES.glob("*.cu*")))
    text = re.sub(r"__launch_bounds__\([^)]*\)", "", re.sub(r"//.*", "", text))
    kernels = set(re.findall(r"__global__\s+void\s+(\w+)\s*\(", text))
    assert len(kernels) == text.count("__global__")
    missing = kernels - {name.split("<")[0] for name in run}
    assert not missing, "emulate these in csrc/emulation/kernels.cpp, test them, and run them here"


def test_every_compiled_instance(run: set[str]) -> None:
    compiled = set(re.findall(r"^\| `(.*?)`", REGISTERS.read_text(), re.MULTILINE))
    assert len(compiled) > 80
    assert compiled <= run, "compiled, but never run in the emulation"
