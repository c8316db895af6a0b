"""Fixtures of the benchmarks, which run on their own (``pytest benchmarks -s``)."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
