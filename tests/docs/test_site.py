"""Hooks of the documentation site: pages from the repository, links and equations."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.helpers.markdown import ROOT

pytest.importorskip("mkdocs", reason="the documentation's packages are not installed")
pytest.importorskip("latex2mathml")

MKDOCS_YML = """
site_name: test
theme: {name: mkdocs}
plugins: []
exclude_docs: _site/
use_directory_urls: false
strict: true
hooks: [docs/_site/repository.py, docs/_site/equations.py, docs/_site/typography.py]
markdown_extensions: [pymdownx.superfences, pymdownx.arithmatex: {generic: true}]
validation: {anchors: warn, omitted_files: warn, unrecognized_links: warn}
nav:
  - index.md
  - gsl-study.md
  - benchmarks/tables
  - Project:
      - project/architecture.md
      - project/changelog.md
      - project/contributing.md
      - results/notes.md
      - results/rivals.md
      - results/transformers.md
      - results/benchmarks.md
"""
INDEX = """# Start

[here](../README.md#some-words), [study](gsl-study.md),
[sine](../benchmarks/tables/sine.md), [folder](../benchmarks)

## Some words

[Some words](../README.md#some-words) <!-- include -->

$a < b$

Half is 50 %, `a-word`, `50 %`.

| a | b |
| --- | --- |
| 95 ± 0.4 % | 98.7 ± 0.4 (Finn et al. 2017) |

```python not-run="as an example"
a = 1
```
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    files = {
        "mkdocs.yml": MKDOCS_YML,
        "docs/index.md": INDEX,
        "README.md": "# T\n\n## Some words\n\nHere [notes](benchmarks/NOTES.md#part).\n\n## More\n",
        "benchmarks/NOTES.md": "# Notes\n\n## Part\n\n[log](results/log.txt)\n",
        "benchmarks/results/log.txt": "numbers",
        "benchmarks/tables/sine.md": "# Sines\n\n![picture](sine.png)\n",
        "benchmarks/tables/sine.png": "png",
        "docs/gsl-study.md": "# Variants\n\n[numbers](../benchmarks/results/log.txt)\n",
        **dict.fromkeys(("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"), "# A"),
        "benchmarks/README.md": "# A",
        **dict.fromkeys((f"benchmarks/{x}/README.md" for x in ("rivals", "transformers")), "# A"),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copytree(ROOT / "docs/_site", tmp_path / "docs/_site")
    return tmp_path


def build(repository: Path) -> Path:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    site = repository / "site"
    build(load_config(str(repository / "mkdocs.yml"), site_dir=str(site)))
    return site


def test_links_resolve_within_the_site(repository: Path):
    page = (build(repository) / "index.html").read_text()
    assert '<a href="index.html#some-words">here</a>' in page
    assert '<a href="gsl-study.html">study</a>' in page
    assert '<a href="results/sine.html">sine</a>, folder' in page  # of a folder, the word
    assert 'Here <a href="results/notes.html#part">notes</a>' in page
    assert "More" not in page
    assert re.search(r"<math[^>]*>.*&lt;.*</math>|<math[^>]*>.*&#x0003C;.*</math>", page)
    assert "not-run" not in page


def test_numbers_with_units_and_short_code_do_not_break(repository: Path):
    page = (build(repository) / "index.html").read_text()
    assert "Half is 50\u00a0%, " in page
    assert '<code class="short">a-word</code>, <code>50 %</code>' in page
    assert "<td>95\u00a0±\u00a00.4\u00a0%</td>" in page
    assert "<td>98.7 ± 0.4 (Finn et al. 2017)</td>" in page


def test_linked_files_are_copied(repository: Path):
    site = build(repository)
    assert (site / "repository/benchmarks/results/log.txt").read_text() == "numbers"
    notes = (site / "results/notes.html").read_text()
    assert 'href="../repository/benchmarks/results/log.txt"' in notes


def test_tables_are_in_the_navigation_with_their_pictures(repository: Path):
    site = build(repository)
    table = (site / "results/sine.html").read_text()
    assert 'src="../repository/benchmarks/tables/sine.png"' in table
    assert (site / "repository/benchmarks/tables/sine.png").read_bytes() == b"png"
    assert 'href="sine.html"' in (site / "results/notes.html").read_text()
    assert 'href="repository/benchmarks/results/log.txt"' in (site / "gsl-study.html").read_text()


@pytest.mark.parametrize("broken", ["[x](nowhere.md)", "[x](../nowhere.txt)", "[x](index.md#no)"])
def test_broken_links_fail(repository: Path, broken: str):
    from mkdocs.exceptions import Abort

    (repository / "docs/index.md").write_text(f"# Start\n\n{broken}\n")
    with pytest.raises(Abort):
        build(repository)


def test_a_missing_section_fails(repository: Path):
    text = "# Start\n\n[x](../README.md#nowhere) <!-- include -->\n"
    (repository / "docs/index.md").write_text(text)
    with pytest.raises(ValueError, match="no section 'nowhere'"):
        build(repository)


def test_the_help_of_a_command_is_included(repository: Path):
    (repository / "docs/index.md").write_text("# Start\n\n<!-- fastmeta info --help -->\n")
    assert "usage: fastmeta info [-h]" in (build(repository) / "index.html").read_text()
