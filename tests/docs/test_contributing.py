"""The recipes of CONTRIBUTING.md and docs/how-to/own-op.md, followed in a copy of the sources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastmeta
from tests.helpers.markdown import ROOT, blocks

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
OWN_OP = (ROOT / "docs/how-to/own-op.md").read_text()
COPIED = ("CMakeLists.txt", "cmake", "csrc", "fastmeta", "pyproject.toml", "tests")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the recipes change, and the compiled modules."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so")
            )
        else:
            shutil.copy2(ROOT / name, tmp_path / name)
    for module in Path(fastmeta.__file__).parent.glob("_*.so"):
        (tmp_path / "fastmeta" / module.name).symlink_to(module)
    return tmp_path


def follow(page: str, root: Path) -> None:
    """Writes the files that the page's blocks name in their titles, then makes the changes."""
    for language in ("python", "cpp"):
        for block in blocks(page, language):
            if "title" in block.options:
                path = root / block.options["title"]
                assert not path.exists(), f"{path} is there already"
                path.write_text(block.code)
    for block in blocks(page, "diff"):
        path = root / block.options["title"]
        text = path.read_text()
        for hunk in re.split(r"^\.\.\.\n", block.code, flags=re.M):
            text = patched(text, hunk.splitlines())
        path.write_text(text)


def patched(text: str, hunk: list[str]) -> str:
    """`text` with one hunk of a diff, whose indentation may differ from that of the file."""
    lines = text.splitlines()
    old = [line[1:] for line in hunk if line[0] in " -"]
    new = [line[1:] for line in hunk if line[0] in " +"]
    found = [
        i
        for i in range(len(lines))
        if [line.strip() for line in lines[i : i + len(old)]] == [line.strip() for line in old]
    ]
    assert len(found) == 1, f"{old} must be in the file once, is there {len(found)} times"
    (at,) = found
    shift = indentation(lines[at]) - indentation(old[0])
    lines[at : at + len(old)] = [" " * (indentation(x) + shift) + x.strip() for x in new]
    return "\n".join(lines) + "\n"


def indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def run(root: Path, *arguments: str | Path) -> str:
    """The output of a program in the copy."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(a) for a in arguments],
        cwd=root,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_methods_and_data_sets(copy: Path):
    follow(CONTRIBUTING, copy)
    programs = [b.code for b in blocks(CONTRIBUTING, "python") if "title" not in b.options]
    checks = [
        "import fastmeta",
        f"assert fastmeta.__file__.startswith({str(copy)!r})",
        "from fastmeta.data.datasets.checkers import load_checkers",
        "assert load_checkers(None, 'test').num_classes == 4",
    ]
    for program, method in zip(programs, ("InverseNorm", "SignSGD"), strict=True):
        checks += [
            program,
            "assert len(losses) == 3 and all(loss.isfinite().all() for loss in losses)",
            "parts = [type(part).__name__ for part in (learner.adaptation, learner.aggregation)]",
            f"assert {method!r} in parts, parts",
        ]
    assert run(copy, sys.executable, "-W", "error", "-c", "\n".join(checks)) == ""


def test_the_tests_of_all_aggregations_take_a_new_one(copy: Path):
    follow(CONTRIBUTING, copy)
    (command,) = re.findall(r"`(pytest tests/aggregation [^`]*inverse-norm)`", CONTRIBUTING)
    found = run(copy, sys.executable, "-m", *command.split(), "-q", "-x")
    assert re.search(r"\b\d{2,} passed", found), found


# The kernels that were not built for the test.
STAND_INS = """
#include <stdexcept>
#include "cpu/kernels.h"
namespace fastmeta::cpu::FM_ISA {
#define FM_KERNEL(name, Args)                                                    \\
  __attribute__((weak)) void name(const Args&, const Parallel&) {                \\
    throw std::logic_error("not built for this test: " #name);                   \\
  }
#include "cpu/kernels.inc"
}
"""


def test_an_op(copy: Path):
    """Its own sources by CMake, linked into a library of their own beside the package's."""
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if not (cmake and ninja and compiler):
        pytest.skip("needs cmake, ninja and a C++ compiler")
    follow(OWN_OP, copy)
    build = copy / "build"
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": ninja,
        "Python_EXECUTABLE": sys.executable,
        "FASTMETA_CUDA": "off",
        "FASTMETA_TESTING": "OFF",
        "FASTMETA_TORCH_DIR": str(Path(torch.__file__).parent),
        "FASTMETA_TORCH_VERSION": torch.__version__,
        "FASTMETA_WERROR": "ON",
    }
    flags = [f"-D{name}={value}" for name, value in options.items()]
    run(copy, cmake, "-S", copy, "-B", build, "-G", "Ninja", *flags)
    targets = re.findall(r"^(\S+\.o):", run(copy, ninja, "-C", build, "-t", "targets", "all"), re.M)
    own = [t for t in targets if re.search(r"/(scale|table|dispatch)\.cpp\.o$", t)]
    assert any(t.endswith("csrc/ops/scale.cpp.o") for t in own), targets
    run(copy, ninja, "-C", build, *own)
    (build / "stand_ins.cpp").write_text(STAND_INS)
    includes = ["-I", copy / "csrc", "-I", copy / "csrc/include"]
    objects: list[str | Path] = [build / t for t in own]
    for isa in {t.split("fastmeta_")[1].split(".dir")[0] for t in own if "table" in t}:
        objects.append(build / f"stand_ins_{isa}.o")
        define = f"-DFM_ISA={isa}"
        run(copy, compiler, "-std=c++17", "-fPIC", "-c", define, *includes,
            build / "stand_ins.cpp", "-o", objects[-1])  # fmt: skip
    library = build / "scale.so"
    torch_cpu = Path(torch.__file__).parent / "lib/libtorch_cpu.so"
    run(copy, compiler, "-shared", *objects, torch_cpu, "-o", library)
    (copy / "with_scale.py").write_text(
        "import glob, torch\n"
        "torch.ops.load_library(glob.glob('fastmeta/_C.*so')[0])\n"
        "torch.ops.load_library('build/scale.so')\n"
    )
    found = run(
        copy, sys.executable, "-m", "pytest", "-p", "with_scale", "-q", "-x", "tests/ops", "-k",
        "scale or every_op_is_checked",
    )  # fmt: skip
    assert re.search(r"\b\d{2,} passed", found), found


EMULATED = """
#include "emulation/cuda.h"
#include "emulation/launch.h"
#include "cuda/scale.cuh"
int main() {
  constexpr int64_t kRows = 3, kColumns = 300, kStride = 301;  // two blocks for each row
  std::vector<float> g(kRows * kStride), out(kRows * kColumns), factor{2, -1, 0.5};
  for (size_t k = 0; k < g.size(); ++k) g[k] = static_cast<float>(k);
  fastmeta::cuda::launch_scale(
      {fastmeta::DType::f32, {g.data(), kRows, kColumns, kStride}, factor.data(), out.data()},
      fastmeta::emulation::Launch(1));
  for (int64_t i = 0; i < kRows; ++i)
    for (int64_t p = 0; p < kColumns; ++p)
      if (out[i * kColumns + p] != factor[i] * g[i * kStride + p]) return 1;
}
"""


def test_the_cuda_kernel_of_an_op(copy: Path):
    """In the emulation; and nvcc compiles it, where there is one."""
    nvcc, compiler = shutil.which("nvcc"), shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    follow(OWN_OP, copy)
    common = ["-std=c++17", "-I", copy / "csrc", "-I", copy / "csrc/include"]
    (copy / "emulated.cpp").write_text(EMULATED)
    sources = [copy / "emulated.cpp", *(copy / "csrc/emulation").glob("[!k]*.cpp")]
    run(copy, compiler, *common, *sources, "-rdynamic", "-ldl", "-o", copy / "emulated")
    run(copy, copy / "emulated")
    if nvcc:
        source = copy / "csrc/cuda/scale.cu"
        run(copy, nvcc, "-arch=sm_80", *common, "-c", source, "-o", copy / "scale.o")


def test_files_are_where_the_guide_says():
    paths = re.findall(r"^\| a?.*\? \| `([^`]+)` \|$", CONTRIBUTING, re.M)
    assert len(paths) == 6
    existing = {"aggregation": "cagrad", "adaptation": "adam", "cuda": "gram", "datasets": "mnist"}
    for path in paths:
        name = existing.get(Path(path).parent.name, "")
        assert (ROOT / path.replace("<name>", name)).is_file(), path


def test_an_op_has_the_files_of_the_table():
    table = re.findall(r"^\| `([^`]+)` \|", CONTRIBUTING, re.M)
    assert {Path(p).stem for p in table} == {"scale", "kernels", "op_cases", "op_arguments"}
    found = [block for kind in ("cpp", "python", "diff") for block in blocks(OWN_OP, kind)]
    titles = {block.options["title"] for block in found}
    assert set(table) <= titles
    for path in table:  # another op has them, too
        assert (ROOT / path.replace("scale", "similarity")).is_file(), path


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", CONTRIBUTING):
        assert (ROOT / target).exists(), target


def test_pre_commit_has_the_versions_of_the_project():
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    lint = re.search(r"^lint = \[(.*?)\]$", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert lint
    for tool, repository in (("ruff", "ruff-pre-commit"), ("clang-format", "mirrors-clang-format")):
        (version,) = re.findall(rf'"{tool}==([\d.]+)"', lint[1])
        assert re.search(rf"/{repository}\n\s+rev: v{re.escape(version)}\n", config), tool
