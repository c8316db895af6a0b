"""The code of the migration page runs."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "migrate-from-learn2learn.md"


def test_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    space: dict[str, object] = {}
    exec("\n".join(blocks), space)
    assert space["model"].weight.grad.count_nonzero() == 12
