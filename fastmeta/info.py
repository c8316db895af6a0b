"""Which backend is active, and what it was built with."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from importlib import metadata

import torch

from fastmeta.backend import kernels


@dataclass(frozen=True)
class BuildInfo:
    """How the compiled kernels were built, and what they run on.

    Attributes:
        version: of fastmeta.
        backend: ``"compiled"``; without the compiled module fastmeta does not import.
        cpu_isa: instruction set chosen for this processor: ``baseline``, ``avx2`` or ``avx512``.
        compiler: C++ compiler of the build.
        built_with_torch: torch version whose headers were used.
        cuda: version of nvcc, or ``None`` for a build without CUDA kernels.
        cuda_architectures: GPU architectures with machine code, such as ``("80", "90")``.
        cuda_reason: why the build has these CUDA kernels or none, and how to compile others.
    """

    version: str
    backend: str
    cpu_isa: str
    compiler: str
    built_with_torch: str
    cuda: str | None
    cuda_architectures: tuple[str, ...]
    cuda_reason: str


def build_info() -> BuildInfo:
    """The facts of the compiled backend."""
    isa, compiler, built_with, cuda, architectures, reason = kernels.build_info().split(";")
    return BuildInfo(
        version=metadata.version("fastmeta"),
        backend="compiled",
        cpu_isa=isa,
        compiler=compiler,
        built_with_torch=built_with,
        cuda=cuda or None,
        cuda_architectures=tuple(architectures.split(",")) if architectures else (),
        cuda_reason=reason,
    )


@cache
def kernel_devices() -> tuple[str, ...]:
    """The types of device there are kernels for: ``cpu``, and ``cuda`` in a build with CUDA."""
    _, _, _, cuda, *_ = kernels.build_info().split(";")
    return ("cpu", "cuda") if cuda else ("cpu",)


def show_config() -> None:
    """Prints backend, versions, architectures, devices and threads."""
    info = build_info()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cuda = f"{info.cuda} for sm_{', sm_'.join(info.cuda_architectures)}" if info.cuda else "none"
    rows = {
        "fastmeta": info.version,
        "backend": f"{info.backend} ({info.compiler}, built with torch {info.built_with_torch})",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "CPU kernels": f"{info.cpu_isa}, {torch.get_num_threads()} threads",
        "CUDA kernels": f"{cuda} ({info.cuda_reason})",
        "GPUs": ", ".join(gpus) or "none found by torch",
    }
    for name, value in rows.items():
        print(f"{name + ':':<14}{value}")
