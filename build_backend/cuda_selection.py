"""Selects the GPU architectures to compile the CUDA kernels for.

``FASTMETA_CUDA=auto`` (the default) compiles what this machine can run: the architectures of its
GPUs, and nothing without a GPU or for a CPU-only torch. ``on`` compiles all of ``ARCHITECTURES``,
``off`` none. ``FASTMETA_CUDA_ARCHITECTURES`` names them explicitly.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
_ALL = "FASTMETA_CUDA=on compiles all"
_INSTALL_NVCC = (
    "Install the CUDA toolkit (nvcc, cudart headers and libcudart_static) and put nvcc on PATH or "
    "set CUDACXX, or build for the CPU alone with FASTMETA_CUDA=off."
)


class CudaSelection(NamedTuple):
    """What to compile, and why.

    Attributes:
        architectures: such as ``("80", "90")``; empty for a build without CUDA kernels.
        reason: one line without semicolons, which ``fastmeta.build_info()`` reports.
    """

    architectures: tuple[str, ...]
    reason: str


def select(
    setting: str,
    named: Collection[str],
    torch_cuda: str | None,
    gpus: Collection[str],
    known: Collection[str],
) -> CudaSelection:
    """The architectures to compile for.

    Args:
        setting: ``auto``, ``on`` or ``off``.
        named: architectures that the user asks for; replace the choice of ``auto`` and ``on``.
        torch_cuda: the CUDA version of the installed torch; ``None`` for a CPU-only build.
        gpus: architectures of the GPUs present.
        known: architectures that nvcc compiles for; none without a working nvcc.

    Raises:
        SystemExit: on another setting, and where nvcc is missing or knows none of the architectures
            asked for.
    """
    if setting not in ("auto", "on", "off"):
        raise SystemExit(f"FASTMETA_CUDA must be auto, on or off; got '{setting}'.")
    if setting == "off":
        return CudaSelection((), "FASTMETA_CUDA=off")
    explicit = setting == "on" or named
    if not explicit and torch_cuda is None:
        return CudaSelection((), f"the installed torch is built without CUDA, {_ALL}")
    if not known:
        if setting == "on":
            raise SystemExit(f"FASTMETA_CUDA=on, but no working nvcc was found. {_INSTALL_NVCC}")
        return CudaSelection((), "no working nvcc was found")
    if explicit:
        return _select_explicit(named, known)
    if not gpus:
        return CudaSelection((), f"nvidia-smi reports no GPU, {_ALL}")
    found = _sorted({best for gpu in gpus if (best := _newest_up_to(gpu, known))})
    if not found:
        return CudaSelection((), f"nvcc does not support sm_{min(gpus)}, the GPU of this machine")
    return CudaSelection(found, f"the GPUs of the build machine, {_ALL}")


def _select_explicit(named: Collection[str], known: Collection[str]) -> CudaSelection:
    wanted = set(named or ARCHITECTURES)
    if not wanted & set(known):
        raise SystemExit(
            f"nvcc knows none of {', '.join(_sorted(wanted))}, only {', '.join(_sorted(known))}. "
            "Name some of these, such as FASTMETA_CUDA_ARCHITECTURES=80."
        )
    reason = "FASTMETA_CUDA_ARCHITECTURES" if named else "FASTMETA_CUDA=on"
    if unknown := _sorted(wanted - set(known)):
        reason += f", without those unknown to nvcc: {', '.join(unknown)}"
    return CudaSelection(_sorted(wanted & set(known)), reason)


def _newest_up_to(gpu: str, known: Collection[str]) -> str | None:
    """The GPU's architecture or, of an older nvcc, the newest whose code or PTX the GPU runs."""
    return max((k for k in known if k.isdigit() and int(k) <= int(gpu)), key=int, default=None)


def _sorted(architectures: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(architectures, key=lambda name: (int(re.sub(r"\D", "", name) or 0), name)))


def select_here(torch_cuda: str | None, nvcc: str | None) -> CudaSelection:
    """``select`` for this machine and its environment variables."""
    return select(
        os.environ.get("FASTMETA_CUDA", "auto").lower(),
        re.findall(r"\w+", os.environ.get("FASTMETA_CUDA_ARCHITECTURES", "")),
        torch_cuda,
        present_gpus(),
        known_architectures(nvcc),
    )


def find_nvcc() -> str | None:
    """The CUDA compiler: ``CUDACXX``, else nvcc on PATH, in ``CUDA_HOME`` or the usual place."""
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    names = [os.environ.get("CUDACXX"), "nvcc", *(str(Path(h, "bin/nvcc")) for h in homes if h)]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def known_architectures(nvcc: str | None) -> tuple[str, ...]:
    """The architectures ``nvcc`` compiles for; none if it does not run."""
    return _read([nvcc, "--list-gpu-arch"], r"compute_(\w+)") if nvcc else ()


def present_gpus() -> tuple[str, ...]:
    """The architectures of this machine's GPUs, such as ``("90",)``; none without a driver."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    return tuple(cap.replace(".", "") for cap in _read(query, r"(?m)^(\d+\.\d)\s*$"))


def _read(command: list[str], pattern: str) -> tuple[str, ...]:
    """What ``pattern`` matches in the output of ``command``; nothing if that fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(re.findall(pattern, run.stdout))
