"""The package as a whole: the active backend, the README's examples, the public names."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest
import torch

import fastmeta

ROOT = Path(__file__).parents[1]


def test_the_backend_is_the_compiled_one() -> None:
    info = fastmeta.build_info()
    assert info.backend == "compiled"
    assert info.cpu_isa in ("baseline", "avx2", "avx512")
    assert re.match(r"\d+\.\d+", info.built_with_torch)
    assert (info.cuda is None) == (info.cuda_architectures == ())
    assert info.cuda_reason


def test_show_config(capsys: pytest.CaptureFixture) -> None:
    fastmeta.show_config()
    printed = capsys.readouterr().out
    for part in ("backend:      compiled", f"torch:        {torch.__version__}", "CUDA kernels:"):
        assert part in printed


def test_without_the_compiled_module_nothing_runs_in_its_place(tmp_path: Path) -> None:
    # The sources alone, as in a checkout that was never built.
    for path in Path(fastmeta.__file__).parent.rglob("*.py"):
        copy = tmp_path / "fastmeta" / path.relative_to(Path(fastmeta.__file__).parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    # -S: no site-packages hooks, which would put the built package first.
    code = f"import sys; sys.path[:] = {[str(tmp_path), *sys.path]!r}; import fastmeta"
    result = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "compiled kernels could not be loaded" in result.stderr
    assert "pip install -e ." in result.stderr


def test_every_public_name_exists_and_is_documented() -> None:
    modules = [fastmeta] + [
        importlib.import_module(m.name)
        for m in pkgutil.walk_packages(fastmeta.__path__, "fastmeta.")
        if not m.name.endswith(("__main__", "_C", "_testing"))
        if m.name != "fastmeta.lightning" or importlib.util.find_spec("lightning")
    ]
    for module in modules:
        assert module.__doc__, module.__name__
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if isinstance(value, type | FunctionType):
                assert value.__doc__, f"{module.__name__}.{name}"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_readme_runs() -> None:
    code = "\n".join(blocks())
    assert "GSLOptimizer" in code
    batch = "\ntasks = [[torch.randn(6, 4), torch.randint(3, (6,))] * 2 for _ in range(4)]"
    call = "\nmeta_step(model, F.cross_entropy, tasks, opt)\n"
    before = "import torch.nn.functional as F\n"
    space: dict[str, object] = {}
    exec(before + code + batch + call, space)
    assert space["opt"].state_dict()["gsl"]["step"] == 1
