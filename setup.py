"""Builds the compiled modules with CMake and Ninja; all else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))

from cuda_selection import find_nvcc, select_here  # noqa: E402
from fastmeta_build import find_torch, torch_cuda, torch_version  # noqa: E402

# Tests need fastmeta._testing, which is specific to a Python version; without it, a wheel is abi3.
TESTING = os.environ.get("FASTMETA_TESTING", "on").lower() != "off"


def _cmake_program(name: str) -> str:
    program = shutil.which(name)
    if program is None:
        raise SystemExit(
            f"fastmeta needs {name} to build its kernels and found none on PATH. "
            f"Install it with: pip install {name}"
        )
    return program


class CMakeBuild(build_ext):
    """Builds both modules in one CMake build, then copies them to where setuptools expects them."""

    def run(self) -> None:
        build = (ROOT / self.build_temp).resolve()
        torch = find_torch()
        if shutil.which(os.environ.get("CXX", "c++")) is None:
            raise SystemExit(
                "fastmeta needs a C++17 compiler and found none. Install one, for example with "
                "'apt-get install g++', or name it in the environment variable CXX."
            )
        cmake = _cmake_program("cmake")
        nvcc = find_nvcc()
        cuda = select_here(torch_cuda(torch), nvcc)
        print(f"fastmeta: CUDA kernels: {', '.join(cuda.architectures) or 'none'} ({cuda.reason})")
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": _cmake_program("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": __import__("pybind11").get_cmake_dir(),
            "FASTMETA_TORCH_DIR": str(torch),
            "FASTMETA_TORCH_VERSION": torch_version(torch),
            "FASTMETA_CUDA": os.environ.get("FASTMETA_CUDA", "auto").lower(),
            "FASTMETA_CUDA_ARCHITECTURES": ";".join(cuda.architectures),
            "FASTMETA_CUDA_REASON": cuda.reason,
            "FASTMETA_TESTING": "ON" if TESTING else "OFF",
            "FASTMETA_WERROR": os.environ.get("FASTMETA_WERROR", "OFF"),
        }
        # Configured anew: the isolated build environment of the last build is gone.
        shutil.rmtree(build, ignore_errors=True)
        flags = [f"-D{key}={value}" for key, value in options.items()]
        environment = {**os.environ, "CUDACXX": nvcc} if nvcc else None
        configure = [cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *flags]
        subprocess.run(configure, env=environment, check=True)
        subprocess.run([cmake, "--build", build], check=True)
        for extension in self.extensions:
            stem = extension.name.rpartition(".")[2]
            (built,) = build.glob(f"{stem}.*so")
            package = ROOT / "fastmeta" if self.inplace else Path(self.build_lib) / "fastmeta"
            package.mkdir(parents=True, exist_ok=True)
            # Replaced atomically: a running process keeps the old file.
            new = package / f".{built.name}.new"
            shutil.copy2(built, new)
            new.replace(package / built.name)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in (Path(self.build_lib) / "fastmeta").glob("_*.so")]


setup(
    ext_modules=[
        Extension("fastmeta._C", [], py_limited_api=True),
        *([Extension("fastmeta._testing", [])] if TESTING else []),
    ],
    cmdclass={"build_ext": CMakeBuild},
    options={} if TESTING else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
