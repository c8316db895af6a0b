"""The package as a whole: public names and the README's examples."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path
from types import FunctionType

import fastmeta

ROOT = Path(__file__).parents[1]


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
