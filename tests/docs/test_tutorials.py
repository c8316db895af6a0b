"""Notebooks of the tutorials, and the comparison of printed outputs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.helpers.markdown import ROOT, differing_output

SPEC = importlib.util.spec_from_file_location("tutorials", ROOT / "docs/_site/tutorials.py")
assert SPEC is not None
assert SPEC.loader is not None
tutorials = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tutorials)

PAGE = """# Title

Of [`MAML`][fastmeta.MAML] and [a page](other.md).

```python
print(1)
```

```text title="Output"
old
```

```python
from pathlib import Path
Path("a.png").write_bytes(b"picture")
```

![A picture](a.png)

End.
"""


@pytest.mark.parametrize("page", tutorials.TUTORIALS, ids=lambda path: path.stem)
def test_committed_notebooks_are_those_of_the_pages(page: Path):
    made = tutorials.as_json(tutorials.notebook(page.read_text(), page.parent))
    assert page.with_suffix(".ipynb").read_text() == made, "run python docs/_site/tutorials.py"


def test_a_tutorial_is_rerun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.md").write_text(PAGE)
    tutorials.rerun(tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == PAGE.replace("old", "1")
    assert (tmp_path / "a.png").read_bytes() == b"picture"
    cells = json.loads((tmp_path / "page.ipynb").read_text())["cells"]
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code", "code", "markdown"]
    assert "".join(cells[0]["source"]) == "# Title\n\nOf `MAML` and [a page](other.md)."
    assert cells[1]["outputs"][0]["text"] == ["1\n"]
    assert cells[2]["outputs"][0]["data"]["image/png"] == "cGljdHVyZQ=="


@pytest.mark.parametrize(
    ("found", "same"),
    [
        ("mse 0.52 of (25, 10)\n", True),
        ("mse 0.9 of (25, 10)\n", False),
        ("mse 0.5 of (25, 11)\n", False),
        ("acc 0.5 of (25, 10)\n", False),
        ("mse nan of (25, 10)\n", False),
    ],
)
def test_outputs_are_compared_by_words_whole_numbers_and_roughly(found: str, same: bool):
    assert (differing_output("mse 0.5 of (25, 10)\n", found) is None) is same
