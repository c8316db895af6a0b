"""The compiled backend: loading, build information and glibc malloc settings."""

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
_DISABLED = -1


@dataclass(frozen=True)
class BuildInfo:
    """Build configuration of the compiled kernels, and the instruction set in use.

    Attributes:
        version: version of fastmeta.
        backend: `"compiled"`; without the compiled module fastmeta cannot be imported.
        cpu_isa: instruction set selected for this CPU: `baseline`, `avx2` or `avx512`.
        compiler: C++ compiler of the build.
        built_with_torch: torch version of the build.
        cuda: version of nvcc, or `None` for a build without CUDA kernels.
        cuda_architectures: GPU architectures with machine code, such as `("80", "90")`.
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
    """Build information of the compiled backend."""
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
    """The device types with kernels: `cpu`, and `cuda` in a build with CUDA."""
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
    """Keeps the memory of freed CPU tensors in the process, for reuse by later allocations.

    glibc returns freed blocks above 32 MB to the system immediately, and the top of its heap soon
    after; a training step that allocates as much again then takes a page fault for every page. On
    mini-ImageNet's images that is over a quarter of a step (`benchmarks/NOTES.md`). The cost is
    memory: the process does not shrink below its peak until it ends, and its peak may be somewhat
    higher. `fastmeta train` calls this; your own program may. It cannot be undone.

    Returns:
        Whether the setting took effect, which needs Linux with glibc.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, _DISABLED))
