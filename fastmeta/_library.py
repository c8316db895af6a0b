"""Loads the compiled module, which registers ``torch.ops.fastmeta``; there is no fallback."""

from __future__ import annotations

from importlib import import_module

import torch

try:
    import_module("fastmeta._C")
except ImportError as error:
    raise ImportError(
        "fastmeta's compiled kernels could not be loaded: "
        f"{error}. Build them with 'pip install -e .' in the source tree, or reinstall the wheel; "
        f"they need torch 2.11 or newer (this is {torch.__version__})."
    ) from error

kernels = torch.ops.fastmeta
