"""ARCHITECTURE.md describes the repository as it is."""

from __future__ import annotations

import re

from tests.helpers.markdown import ROOT, blocks

TEXT = (ROOT / "ARCHITECTURE.md").read_text()


def test_layers_are_those_of_the_contract():
    contract = re.search(
        r'^name = "layers".*?^layers = \[\n(.*?)^\]',
        (ROOT / "pyproject.toml").read_text(),
        re.M | re.S,
    )
    assert contract
    (block,) = blocks(TEXT, "")
    assert block.code.splitlines() == re.findall(r'"(.*)"', contract[1])


def test_folders_exist():
    rows = re.findall(r"^\| (`.*?) \|", TEXT, re.M)
    paths = [path for row in rows for path in re.findall("`([^`]+)`", row)]
    assert len(paths) > 20
    for path in paths:
        assert (ROOT / path).exists(), path


def test_every_package_has_a_row():
    packages = {path.parent.name for path in (ROOT / "fastmeta").glob("*/__init__.py")}
    assert not packages - set(re.findall(r"`fastmeta/(\w+)/`", TEXT))
