"""PEP 517 build backend: setuptools, with torch as a build requirement if none is installed.

With a static ``requires = ["torch"]``, pip would download another torch of several gigabytes, the
newest CUDA build, into its isolated build environment. The kernels use torch's stable ABI, so any
installed torch from 2.11 on can be built against. Isolation hides it from ``import``, but not its
directory.
"""

from __future__ import annotations

import importlib.util
import re
import sysconfig
from pathlib import Path

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403  (the hooks not overridden below)

OLDEST = (2, 11)
_STABLE_HEADER = Path("include/torch/csrc/stable/library.h")


def _installed_torch() -> Path | None:
    """The torch of the environment being installed into, isolated or not."""
    for scheme in ("platlib", "purelib"):
        torch = Path(sysconfig.get_paths()[scheme]) / "torch"
        if (torch / _STABLE_HEADER).is_file():
            return torch
    return None


def find_torch() -> Path:
    """The torch package directory to build against.

    Raises:
        SystemExit: if there is none, or it is older than 2.11.
    """
    torch = _installed_torch()
    if torch is None:
        spec = importlib.util.find_spec("torch")
        torch = Path(spec.origin).parent if spec and spec.origin else None
    if torch is None or not (torch / _STABLE_HEADER).is_file():
        raise SystemExit(
            "fastmeta builds against torch 2.11 or newer and found none. "
            "Install torch first (pip install torch), then fastmeta."
        )
    version = torch_version(torch)
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < OLDEST:
        raise SystemExit(
            f"fastmeta needs torch 2.11 or newer, but {version} is installed. "
            "Upgrade it with: pip install --upgrade torch"
        )
    return torch


def torch_version(torch: Path) -> str:
    """The version in ``torch/version.py``, read without importing torch."""
    version = _assigned(torch, "__version__")
    if version is None:
        raise SystemExit(f"no version found in {torch / 'version.py'}; reinstall torch.")
    return version


def torch_cuda(torch: Path) -> str | None:
    """The CUDA version ``torch`` was built with; ``None`` for a build without CUDA."""
    return _assigned(torch, "cuda")


def _assigned(torch: Path, name: str) -> str | None:
    text = (torch / "version.py").read_text()
    match = re.search(rf"^{name}\b[^=\n]*= '([^']+)'", text, re.MULTILINE)
    return match.group(1) if match else None


def _torch_if_missing() -> list[str]:
    return [] if _installed_torch() else ["torch>=2.11"]


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    """PEP 517."""
    return _setuptools.get_requires_for_build_wheel(config_settings) + _torch_if_missing()


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    """PEP 660."""
    return _setuptools.get_requires_for_build_editable(config_settings) + _torch_if_missing()
