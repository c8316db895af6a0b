"""The compiled backend: loading it, how it was built, and glibc malloc tuning."""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata

import torch

# There is no fallback: without the kernels, ``import fastmeta`` fails.
try:
    import_module("fastmeta._C")
except ImportError as error:
    raise ImportError(
        "fastmeta's compiled kernels could not be loaded: "
        f"{error}. Build them with 'pip install -e .' in the source tree, or reinstall the wheel; "
        f"they need torch 2.11 or newer (this is {torch.__version__})."
    ) from error

kernels = torch.ops.fastmeta

# From glibc's malloc.h; see mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1


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


def keep_freed_memory() -> bool:
    """Keeps the memory of freed CPU tensors in this process, for its next ones.

    glibc gives blocks above 32 MB back to the system at once, and the top of its heap soon; a
    training step that allocates the like again pays for every page anew. On mini-ImageNet's images
    that is over a quarter of a step (``benchmarks/NOTES.md``). The price is memory: the process
    does not shrink below its peak until it ends, and may peak somewhat higher. ``fastmeta train``
    does this; in your own program it is your choice. There is no way back.

    Returns:
        Whether it could be done: on Linux with glibc.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))
