"""Adds pages and images from elsewhere in the repository to the site.

Benchmarks write their pages beside their results, and the README has sections that the site
repeats. This hook collects those pages, replaces a link followed by ``<!-- include -->`` by the
section that it links to, replaces ``<!-- fastmeta COMMAND --help -->`` by the help of the command,
and copies files outside of ``docs/`` that pages link to.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
# Pages of the site and their sources.
COLLECTED = {
    "project/architecture.md": "ARCHITECTURE.md",
    "project/changelog.md": "CHANGELOG.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "results/benchmarks.md": "benchmarks/README.md",
    "results/notes.md": "benchmarks/NOTES.md",
    "results/rivals.md": "benchmarks/rivals/README.md",
    "results/transformers.md": "benchmarks/transformers/README.md",
}
TABLES = "benchmarks/tables"
# Pages whose tables take the place of the table of contents, as those of TABLES.
WIDE = {"gsl-study.md", "results/accuracy.md", "results/benchmarks.md", "results/speed.md"}

_INCLUDE = re.compile(r"^\[[^\]]*\]\((?P<file>[^)#]+)#(?P<slug>[\w-]+)\) <!-- include -->$", re.M)
_LINK = re.compile(r"(?P<text>\[[^\[\]]*\])\((?P<target>[^()\s#:]+)(?P<anchor>#[^()\s]*)?\)")
_NOT_RUN = re.compile(r'^(```python.*) not-run="[^"]+"$', re.M)  # only for the tests
_HELP = re.compile(r"^<!-- fastmeta (?P<command>[\w-]+) --help -->$", re.M)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the tables to the navigation; without an address of the repository, no edit links."""
    if not config.repo_url:
        config.edit_uri = None
    assert config.nav is not None
    config.nav = _with_tables(config.nav, [{_title(p): name} for name, p in _tables().items()])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from elsewhere."""
    pages = {name: ROOT / source for name, source in COLLECTED.items()}
    pages |= _tables()
    for name, source in pages.items():
        files.append(File.generated(config, name, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Includes sections, and redirects links out of ``docs/`` to their targets in the site."""
    source = Path(page.file.abs_src_path or "")
    _set_defaults(page)
    place = _Place(page.file, config, files)
    # Sections last: their links are relative to another file.
    parts = _INCLUDE.split(_NOT_RUN.sub(r"\1", markdown))
    texts = [place.relinked(text, source.parent) for text in parts[::3]]
    for i, (file, slug) in enumerate(zip(parts[1::3], parts[2::3], strict=True)):
        other = (source.parent / file).resolve()
        texts[i] += place.relinked(section(other.read_text(), slug), other.parent)
    return _HELP.sub(_help, "".join(texts))


def _set_defaults(page: Page) -> None:
    """Ranks results behind the documentation in search, and gives their wide tables the page."""
    uri = page.file.src_uri
    if uri.startswith(("results/", "project/")) or uri == "gsl-study.md":
        page.meta.setdefault("search", {"boost": 0.2})
    if uri in _tables() or uri in WIDE:
        page.meta.setdefault("hide", ["toc"])


def _help(match: re.Match[str]) -> str:
    """The output of the command, as a code block."""
    from fastmeta.cli import main

    printed = io.StringIO()
    width = patch.dict(os.environ, COLUMNS="90")
    with width, redirect_stdout(printed), suppress(SystemExit):
        main([match["command"], "--help"])
    return f"```text\n{printed.getvalue()}```"


def section(text: str, slug: str) -> str:
    """The text below the second-level heading whose GitHub anchor is ``slug``.

    Raises:
        ValueError: if there is none.
    """
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        title, _, body = part.partition("\n")
        if re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") == slug:
            return body.strip()
    raise ValueError(f"there is no section {slug!r} to include.")


class _Place:
    """A page, to rewrite its links."""

    def __init__(self, file: File, config: MkDocsConfig, files: Files) -> None:
        self.file, self.config, self.files = file, config, files
        self.sources = {f.abs_src_path: f for f in files}
        self.included = _included(files)

    def relinked(self, text: str, folder: Path) -> str:
        """``text`` from ``folder``, with its links rewritten for this page."""

        def link(match: re.Match[str]) -> str:
            target = Path(os.path.normpath(folder / match["target"]))
            if target.is_dir() and target.is_relative_to(ROOT):
                return match["text"][1:-1]
            if not target.is_file():
                return match[0]  # reported by mkdocs
            anchor = match["anchor"] or ""
            found = (
                self.included.get(f"{target}{anchor}")
                or self.sources.get(str(target))
                or self._copied(target)
            )
            here = os.path.relpath(found.src_uri, Path(self.file.src_uri).parent)
            return f"{match['text']}({here}{anchor})"

        return _LINK.sub(link, text)

    def _copied(self, target: Path) -> File:
        name = f"repository/{target.relative_to(ROOT).as_posix()}"
        # Markdown that is not a page of the site is shown as text.
        name = f"{name}.txt" if target.suffix == ".md" else name
        found = File.generated(
            self.config, name, abs_src_path=str(target), inclusion=InclusionLevel.NOT_IN_NAV
        )
        self.files.append(found)
        self.sources[str(target)] = found
        return found


def _included(files: Files) -> dict[str, File]:
    """The pages that include a section, by file and anchor of the section."""
    found: dict[str, File] = {}
    for page in files.documentation_pages():
        source = Path(page.abs_src_path or "")
        for file, slug in _INCLUDE.findall(source.read_text()):
            found[f"{(source.parent / file).resolve()}#{slug}"] = page
    return found


def _tables() -> dict[str, Path]:
    return {f"results/{path.name}": path for path in sorted((ROOT / TABLES).glob("*.md"))}


def _title(page: Path) -> str:
    """A short title for the navigation: dataset and size of the tasks."""
    heading = page.read_text().partition("\n")[0].removeprefix("# ")
    return ", ".join(re.sub(r" \([^)]*\)", "", heading).split(", ")[:2])


def _with_tables(nav: Iterable[Any], tables: list[dict[str, str]]) -> list[Any]:
    result: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            ((title, inside),) = entry.items()
            nested = _with_tables(inside, tables) if isinstance(inside, list) else inside
            result.append({title: nested})
        else:
            result += tables if entry == TABLES else [entry]
    return result
