"""Benchmarks run by themselves (``pytest benchmarks -s``), never with the tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
