from __future__ import annotations

import pytest
from torch import nn

from tests.helpers.problems import MODULES


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> nn.Module:
    return MODULES[request.param]().double()
