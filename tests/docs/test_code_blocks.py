"""What README.md and docs/ tell users to run, runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fences
import pytest
import torch

from fastmeta.adaptation import ADAPTATIONS
from fastmeta.aggregation import AGGREGATIONS
from fastmeta.cli.arguments import given_options, make_parser
from fastmeta.learners import METHODS
from fastmeta.metagrad import METAGRADS
from fastmeta.train import TrainConfig, configure, read_config
from fastmeta.train.builders import build_learner, build_module, check_learner, task_source

# What stands for a word of the user's; METHOD is one that takes all data sets.
PLACEHOLDERS = {"METHOD": "fomaml", "NAME": "digits"}
WITHOUT_FILES = ("digits", "sine")

PAGES = [pytest.param(page, id=str(page.relative_to(fences.ROOT))) for page in fences.PAGES]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # As torchrun would start a single rank.
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
def test_python_blocks_run_one_after_the_other(page: Path):
    run(page)


def test_the_drop_in_of_the_readme_steps():
    scope = run(fences.ROOT / "README.md")
    model, batch = scope["model"], scope["batch"]
    before = model.weight.clone()
    scope["meta_step"](model, torch.nn.functional.cross_entropy, batch, scope["opt"])
    assert not torch.equal(model.weight, before)


def run(page: Path) -> dict[str, Any]:
    """The names that the page's blocks leave behind."""
    torch.set_num_threads(1)
    scope: dict[str, Any] = {"__name__": page.stem}
    for block in fences.blocks(page.read_text(), "python"):
        if "not-run" in block.options:
            assert block.options["not-run"], f"{page}:{block.line}: say why it is not run."
            continue
        # Empty lines first, so that a traceback names the line of the page.
        exec(compile("\n" * block.line + block.code, page, "exec"), scope)
    return scope


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page: Path):
    text = page.read_text()
    for block in fences.blocks(text, "toml"):
        name = Path(block.options.get("title", "unnamed.toml"))
        if name.name == "pyproject.toml":
            continue
        name.write_text(block.code)
        check(configure(read_config(name)))
    for words in fences.commands(text):
        given = make_parser().parse_args([PLACEHOLDERS.get(word, word) for word in words])
        if given.command == "info":
            continue
        options = given_options(given)
        named = read_config(given.config) if getattr(given, "config", None) else {}
        # A run that is there brings its own data set, whose options these must suit.
        check(configure(named, options))


def check(config: TrainConfig) -> None:
    """The rooms take their options, and the engine the tasks, as far as that needs no files."""
    if config.dataset not in WITHOUT_FILES:
        return
    cpu = torch.device("cpu")
    tasks = task_source(config, "train", cpu)
    learner = build_learner(config, build_module(config, tasks, cpu))
    check_learner(config, learner, tasks)


def test_every_page_is_looked_at():
    assert len(fences.PAGES) > 20
    python = sum(len(fences.blocks(page.read_text(), "python")) for page in fences.PAGES)
    shell = sum(len(fences.commands(page.read_text())) for page in fences.PAGES)
    assert python > 20
    assert shell > 20


def test_every_package_has_a_page():
    packages = {path.parent.name for path in (fences.ROOT / "fastmeta").glob("*/__init__.py")}
    assert not packages - {page.stem for page in (fences.ROOT / "docs/api").glob("*.md")}


def test_a_block_is_found_with_its_place_and_options():
    (block,) = fences.blocks('A\n\n- B\n\n  ```python not-run="slow"\n  a = 1\n  ```\n', "python")
    assert block == ("python", {"not-run": "slow"}, 5, "a = 1\n")


def test_commands_are_found_in_lines_and_sentences():
    text = (
        "```bash\nfastmeta info  # this\n"
        "pip install x && torchrun -m fastmeta train --dataset sine \\\n  --steps 3\n```\n"
        "`fastmeta evaluate` does `fastmeta evaluate\nRUN` or `fastmeta train\n--method gsl`"
    )
    assert fences.commands(text) == [
        ["info"],
        ["train", "--dataset", "sine", "--steps", "3"],
        ["evaluate", "RUN"],
        ["train", "--method", "gsl"],
    ]
