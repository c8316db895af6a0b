"""Converts equations to MathML when the site is built, so that browsers need no script."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

_MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</\1>', re.DOTALL)

# Bars of norms; by default browsers stretch them to the line, and space them as relations.
_BAR = re.compile(r'<mo(?! stretchy="true")[^>]*>(?P<bar>\||&#x0007C;|&#x02016;|&#x02223;)</mo>')


def on_page_content(html: str, **_: Any) -> str:
    """Replaces the equations that the extension ``arithmatex`` has marked."""
    return _MATH.sub(_mathml, html)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match[1] == "div" else "inline"
    math = convert(unescape(match["latex"]), display=display)
    return _BAR.sub(r"<mo stretchy='false' lspace='0' rspace='0'>\g<bar></mo>", math)
