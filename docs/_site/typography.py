"""Keeps on one line what should not be broken: numbers with their units, and short code."""

from __future__ import annotations

import re
from typing import Any

_CODE = re.compile(r"(<pre.*?</pre>|<code.*?</code>)", re.DOTALL)
_SHORT = re.compile(r"<code>([^<\s]{1,24})</code>")
# "0.4 %", and table cells such as "95.2 ± 0.4 (1 seed)".
_PERCENT = re.compile(r"(?<=\d) (?=%)")
_SCORE = re.compile(r"<td[^>]*>(?:<strong>)?[\d.,]+ ± [^<]{1,18}<")


def on_page_content(html: str, **_: Any) -> str:
    """Sets no-break spaces and the class of short code."""
    parts = _CODE.split(html)
    parts[::2] = [_SCORE.sub(_joined, _PERCENT.sub("\u00a0", text)) for text in parts[::2]]
    parts[1::2] = [_SHORT.sub(r'<code class="short">\1</code>', code) for code in parts[1::2]]
    return "".join(parts)


def _joined(match: re.Match[str]) -> str:
    start, end = match[0].split(">", 1)
    return f"{start}>{end.replace(' ', chr(0xA0))}"
