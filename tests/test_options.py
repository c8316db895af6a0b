"""The options of a component: read from its signature, checked by name and type."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from fastmeta._options import (
    construct,
    describe,
    forwards_options,
    matches,
    options_of,
    summary_of,
)


class Base:
    """A base. Not of interest.

    Args:
        lr: the rate.
        eta: of `Base`, such as ``0.5``,
            on two lines.
    """

    def __init__(self, lr: float, eta: float = 1.0, rule: Literal["a", "b"] = "a") -> None:
        self.values = (lr, eta, rule)


@forwards_options(lambda given: Base)
def forwarding(lr: float, size: int | None = None, **options: Any) -> Base:
    return Base(lr, **options)


def anything(**options: Any) -> dict[str, Any]:
    return options


def test_options_are_read_from_signature_and_docstring() -> None:
    found = options_of(Base, fixed=("lr",))
    assert [*found] == ["eta", "rule"]
    assert found["eta"].default == 1.0
    assert found["eta"].text == "of Base, such as 0.5, on two lines."
    assert [*options_of(partial(Base, eta=2.0))] == ["lr", "rule"]
    assert summary_of(partial(Base, eta=2.0)) == "A base."


def test_a_factory_that_forwards_options_has_those_of_its_target() -> None:
    assert {*options_of(forwarding, fixed=("lr",))} == {"size", "eta", "rule"}
    assert options_of(anything) is None


def test_construct_passes_what_is_valid() -> None:
    assert construct("x", Base, {"eta": 2}, lr=1.0).values == (1.0, 2, "a")
    assert construct("x", Base, {"eta": 2}, 1.0).values == (1.0, 2, "a")
    assert construct("x", anything, {"any": 1}, lr=1.0) == {"any": 1, "lr": 1.0}


@pytest.mark.parametrize(
    ("factory", "options", "error", "message"),
    [
        (Base, {"etta": 1}, TypeError, "x has no option 'etta'. Did you mean 'eta'? Options: eta,"),
        (Base, {"lr": 1}, TypeError, "x has no option 'lr'. Options: eta, rule"),
        (object, {"a": 1}, TypeError, "x has no option 'a'. It takes no options."),
        (Base, {"eta": "abc"}, ValueError, "x: eta must be a number; got 'abc'."),
        (Base, {"rule": "aa"}, ValueError, "x: rule must be one of a, b; got 'aa'. Did you mean"),
        (forwarding, {"sise": 1}, TypeError, "x has no option 'sise'. Did you mean 'size'?"),
        (forwarding, {"size": 1.5}, ValueError, "size must be an integer or none; got 1.5"),
    ],
)
def test_errors_name_component_and_option(factory, options, error, message) -> None:
    fixed = {} if factory is object else {"lr": 1.0}
    with pytest.raises(error) as caught:
        construct("x", factory, options, **fixed)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("hint", "text", "valid", "invalid"),
    [
        (float, "a number", [1, 0.5], ["1", True, None]),
        (int, "an integer", [1], [1.0, True, "1"]),
        (bool, "true or false", [True], [1, "true"]),
        (str | Path, "a string or a path", ["a"], [1]),
        (tuple[float, int], "a list [a number, an integer]", [[1.5, 1]], [[1.5], 1.5, [1, 1.5]]),
        (Sequence[int], "a list, each an integer", [[1, 2], (1,)], [1, ["a"], "12"]),
        (int | Sequence[str], "an integer or a list, each a string", [1, ["a"]], [[1]]),
        (None | float, "none or a number", [None, 1.0], ["none"]),
        (Any, "anything", [1, "a"], []),
        (Base, "Base", [1, "a"], []),
    ],
)
def test_types(hint, text: str, valid: list, invalid: list) -> None:
    assert describe(hint) == text
    assert all(matches(value, hint) for value in valid)
    assert not any(matches(value, hint) for value in invalid)
