"""The current inner step, as a context."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from torch import Tensor

from fastmeta.adaptation import SGD, run_inner_loop
from fastmeta.inner_step import at_step, current_step


def test_contexts_nest_and_restore() -> None:
    assert current_step() is None
    with at_step(3):
        with at_step(0):
            assert current_step() == 0
        with pytest.raises(KeyError), at_step(0):
            raise KeyError
        assert current_step() == 3
        with at_step(None):
            assert current_step() is None
        assert current_step() == 3
    assert current_step() is None


def test_threads_have_their_own() -> None:
    seen = []
    with at_step(2):
        thread = Thread(target=lambda: seen.append(current_step()))
        thread.start()
        thread.join()
    assert seen == [None]


@pytest.mark.parametrize("create_graph", [False, True])
def test_an_inner_loop_within_an_inner_loop(create_graph: bool) -> None:
    seen: list[tuple[str, int | None]] = []

    def within(params: list[Tensor]) -> Tensor:
        seen.append(("within", current_step()))
        return params[0].square().sum()

    def loss(params: list[Tensor]) -> Tensor:
        run_inner_loop(SGD(0.1, 2), within, params)
        seen.append(("loss", current_step()))
        return params[0].square().sum()

    start = [torch.randn(3, requires_grad=True)]
    with at_step(7):
        run_inner_loop(SGD(0.1, 2), loss, start, create_graph=create_graph)
        assert current_step() == 7
    each = [("within", 0), ("within", 1)]
    assert seen == [*each, ("loss", 0), *each, ("loss", 1)]
