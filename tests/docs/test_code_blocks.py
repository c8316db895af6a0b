"""The code and commands of README.md and docs/ run."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

import fastmeta
from fastmeta.adaptation import ADAPTATIONS
from fastmeta.aggregation import AGGREGATIONS, UPGrad
from fastmeta.cli.arguments import given_options
from fastmeta.cli.parser import parse
from fastmeta.learners import METHODS
from fastmeta.metagrad import METAGRADS
from fastmeta.train import TrainConfig, configure, read_config
from fastmeta.train.builders import build_learner, build_module, check_learner
from fastmeta.train.sources import task_source
from tests.helpers import markdown
from tests.helpers.problems import tasks
from tests.optim.test_loops import LOOPS, train

# Values of placeholders; METHOD is one that supports all datasets.
PLACEHOLDERS = {"METHOD": "fomaml", "NAME": "digits"}
WITHOUT_FILES = ("digits", "glyphs", "image-regression", "sine")

PAGES = [pytest.param(page, id=str(page.relative_to(markdown.ROOT))) for page in markdown.PAGES]


@pytest.fixture(autouse=True)
def _empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    # The environment of a single rank under torchrun.
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def _restore_registries() -> Iterator[None]:
    registries = (ADAPTATIONS, METAGRADS, AGGREGATIONS, METHODS)
    before = [(registry, dict(registry.own)) for registry in registries]
    yield
    for registry, own in before:
        registry.own = own


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run_in_order(page: Path, monkeypatch: pytest.MonkeyPatch):
    if page.stem == "transformers":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        pytest.importorskip("transformers", reason="needs transformers")
        pytest.importorskip("peft", reason="needs peft")
    run(page)


def test_the_readme_optimizer_diff():
    """Both sides run; with the mean in place of the aggregation they agree to the bit."""
    (diff,) = markdown.blocks((markdown.ROOT / "README.md").read_text(), "diff")
    lines = diff.code.splitlines()
    before = "\n".join(line[1:] for line in lines if line[0] in " -")
    after = "\n".join(line[1:] for line in lines if line[0] in " +")

    def weight_after(code: str) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3, bias=False)
        scope = {
            **{"torch": torch, "fastmeta": fastmeta, "UPGrad": UPGrad, "model": model},
            "loader": torch.randn(2, 4, 6, 4),
            "query_loss": lambda module, task: module(task).mean(),  # gradients conflict
        }
        exec(code, scope)
        return model.weight.detach()

    plain = weight_after(before)
    assert torch.equal(weight_after(after.replace("UPGrad()", "None")), plain)
    assert not torch.equal(weight_after(after), plain)


@pytest.mark.parametrize("name", ["functional_call", "summed losses", "learn2learn", "deepcopy"])
def test_the_loops_of_the_how_to_run(name: str):
    """Exactness and accuracy of these diffs: tests/optim/test_loops.py."""
    model, batch = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), tasks(2)
    for code in LOOPS[name][:2]:
        train(code, model.double(), [batch])


def run(page: Path) -> dict[str, Any]:
    """Runs the blocks of a page and compares its outputs; returns the names they define."""
    torch.set_num_threads(1)
    scope: dict[str, Any] = {"__name__": page.stem}
    text = page.read_text()
    shown = markdown.outputs(text)
    for block in markdown.blocks(text, "python"):
        if "not-run" in block.options:
            assert block.options["not-run"], f"{page}:{block.line}: say why it is not run."
            continue
        # Empty lines first, so that a traceback names the line of the page.
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile("\n" * block.line + block.code, page, "exec"), scope)
        if block.line in shown:
            difference = markdown.differing_output(shown[block.line], printed.getvalue())
            assert difference is None, f"{page}:{block.line}: {difference}"
    for name in markdown.saved_pictures(text):
        assert Path(name).stat().st_size > 0
    return scope


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_valid(page: Path):
    text = page.read_text()
    for block in markdown.blocks(text, "toml"):
        name = Path(block.options.get("title", "unnamed.toml"))
        if name.name == "pyproject.toml":
            continue
        name.write_text(block.code)
        check(configure(read_config(name)))
    for arguments in markdown.commands(text):
        given = parse([PLACEHOLDERS.get(argument, argument) for argument in arguments])
        if given.command == "info":
            continue
        options = given_options(given)
        named = read_config(given.config) if getattr(given, "config", None) else {}
        # An existing run has its own dataset, whose options these must match.
        check(configure(named, options))


def check(config: TrainConfig) -> None:
    """Checks the options of all components, and the engine with tasks that need no files."""
    if config.dataset not in WITHOUT_FILES:
        return
    cpu = torch.device("cpu")
    tasks = task_source(config, "train", cpu)
    learner = build_learner(config, build_module(config, tasks, cpu))
    check_learner(config, learner, tasks)


def test_every_page_is_checked():
    assert len(markdown.PAGES) > 20
    python = sum(len(markdown.blocks(page.read_text(), "python")) for page in markdown.PAGES)
    shell = sum(len(markdown.commands(page.read_text())) for page in markdown.PAGES)
    assert python > 20
    assert shell > 20


def test_every_package_has_a_page():
    packages = {path.parent.name for path in (markdown.ROOT / "fastmeta").glob("*/__init__.py")}
    assert not packages - {page.stem for page in (markdown.ROOT / "docs/api").glob("*.md")}


def test_blocks_have_their_line_and_options():
    (block,) = markdown.blocks('A\n\n- B\n\n  ```python not-run="slow"\n  a = 1\n  ```\n', "python")
    assert block == ("python", {"not-run": "slow"}, 5, "a = 1\n")


def test_commands_are_found_in_lines_and_sentences():
    text = (
        "```bash\nfastmeta info  # this\n"
        "pip install x && torchrun -m fastmeta train --dataset sine \\\n  --steps 3\n```\n"
        "`fastmeta evaluate` does `fastmeta evaluate\nRUN` or `fastmeta train\n--method gsl`"
    )
    assert markdown.commands(text) == [
        ["info"],
        ["train", "--dataset", "sine", "--steps", "3"],
        ["evaluate", "RUN"],
        ["train", "--method", "gsl"],
    ]
