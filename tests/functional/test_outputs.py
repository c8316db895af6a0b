"""Outputs of modules that are not tensors: what results hold of them, and the modules' losses."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fastmeta import model_loss
from fastmeta.functional.outputs import prediction

LOSS, LOGITS, HIDDEN = torch.tensor(1.0), torch.ones(2, 3), torch.ones(2, 4)


@dataclass
class Output:
    loss: Tensor | None
    hidden: Tensor
    logits: Tensor | None = None


class Named(NamedTuple):
    logits: Tensor
    loss: Tensor


OUTPUTS: list[tuple[Any, Tensor, Tensor | None]] = [
    (LOGITS, LOGITS, None),
    (LOSS, LOSS, LOSS),
    (Output(LOSS, HIDDEN, LOGITS), LOGITS, LOSS),
    (Output(None, HIDDEN), HIDDEN, None),
    ({"loss": LOSS, "cache": None, "hidden": HIDDEN}, HIDDEN, LOSS),
    (OrderedDict(loss=LOSS), LOSS, LOSS),
    (Named(LOGITS, LOSS), LOGITS, LOSS),
    ((LOGITS, HIDDEN), LOGITS, None),
    ([None, HIDDEN], HIDDEN, None),
]


@pytest.mark.parametrize(("output", "expected", "loss"), OUTPUTS)
def test_prediction_and_loss(output: Any, expected: Tensor, loss: Tensor | None) -> None:
    assert prediction(output) is expected
    if loss is not None:
        assert model_loss(output, None) is loss
        return
    with pytest.raises(TypeError, match=r"without a loss.*Add 'labels' to support_x and query_x"):
        model_loss(output, None)


@pytest.mark.parametrize("output", [None, (), {"loss": None}, 1.0])
def test_outputs_without_a_tensor(output: Any) -> None:
    with pytest.raises(TypeError, match=rf"a {type(output).__name__}, in which there is no tensor"):
        prediction(output)
