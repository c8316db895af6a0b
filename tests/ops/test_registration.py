"""torch's checks of the registered ops: schemas, aliasing, fake kernels."""

from __future__ import annotations

import pytest
import torch

from fastmeta.backend import kernels
from tests.helpers.op_arguments import SAMPLES


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name: str) -> None:
    op = getattr(kernels, name).default
    args = SAMPLES[name](torch.randn(3, 7))
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(op, args, test_utils=checks)


def test_every_op_is_checked() -> None:
    names = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fastmeta::")
    }
    assert names - {"build_info", "head_limit", "mlp_limits", "sequence_workspace"} == set(SAMPLES)
