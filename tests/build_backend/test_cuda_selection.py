"""Which GPU architectures a build compiles for."""

from __future__ import annotations

import sys
from pathlib import Path

import cuda_selection
import fastmeta_build
import pytest
from cuda_selection import ARCHITECTURES, select

NVCC = ("75", "80", "86", "89", "90", "100", "103", "120", "121")


@pytest.mark.parametrize("gpus", [(), ("90",)])
@pytest.mark.parametrize("known", [(), NVCC])
def test_auto_compiles_nothing_for_a_cpu_only_torch(
    gpus: tuple[str, ...], known: tuple[str, ...]
) -> None:
    assert select("auto", (), None, gpus, known) == (
        (),
        "the installed torch is built without CUDA, FASTMETA_CUDA=on compiles all",
    )


@pytest.mark.parametrize(
    ("gpus", "known", "architectures"),
    [
        (("90",), NVCC, ("90",)),
        (("90", "90"), NVCC, ("90",)),
        (("120", "75"), NVCC, ("75", "120")),
        (("103",), NVCC, ("103",)),  # not among those that "on" compiles
        (("121",), ("75", "90", "120"), ("120",)),  # an older nvcc
        (("120",), ("75", "80", "80a", "90"), ("90",)),  # runs the PTX
    ],
)
def test_auto_compiles_for_the_gpus_present(
    gpus: tuple[str, ...], known: tuple[str, ...], architectures: tuple[str, ...]
) -> None:
    found = select("auto", (), "13.0", gpus, known)
    assert found.architectures == architectures
    assert "FASTMETA_CUDA=on" in found.reason


@pytest.mark.parametrize(
    ("gpus", "known", "reason"),
    [
        ((), NVCC, "nvidia-smi reports no GPU, FASTMETA_CUDA=on compiles all"),
        (("90",), (), "no working nvcc was found"),
        (("70",), NVCC, "nvcc does not support sm_70, the GPU of this machine"),
    ],
)
def test_auto_says_why_it_compiles_nothing(
    gpus: tuple[str, ...], known: tuple[str, ...], reason: str
) -> None:
    assert select("auto", (), "13.0", gpus, known) == ((), reason)


@pytest.mark.parametrize("gpus", [(), ("90",)])
@pytest.mark.parametrize("torch_cuda", [None, "13.0"])
def test_on_compiles_all(torch_cuda: str | None, gpus: tuple[str, ...]) -> None:
    assert select("on", (), torch_cuda, gpus, NVCC) == (ARCHITECTURES, "FASTMETA_CUDA=on")
    found = select("on", (), torch_cuda, gpus, NVCC[:5])
    assert found.architectures == NVCC[:5]
    assert found.reason == "FASTMETA_CUDA=on, without those unknown to nvcc: 100, 120"


def test_on_needs_nvcc() -> None:
    with pytest.raises(SystemExit, match=r"no working nvcc was found\. Install the CUDA toolkit"):
        select("on", (), "13.0", ("90",), ())


def test_off_compiles_nothing() -> None:
    assert select("off", ("90",), "13.0", ("90",), NVCC) == ((), "FASTMETA_CUDA=off")


@pytest.mark.parametrize("setting", ["auto", "on"])
@pytest.mark.parametrize("torch_cuda", [None, "13.0"])
def test_architectures_named_by_the_user_replace_the_choice(
    setting: str, torch_cuda: str | None
) -> None:
    found = select(setting, ("100", "80"), torch_cuda, ("90",), NVCC)
    assert found == (("80", "100"), "FASTMETA_CUDA_ARCHITECTURES")
    found = select(setting, ("80", "native"), torch_cuda, (), NVCC)
    assert found.architectures == ("80",)
    assert found.reason.endswith("unknown to nvcc: native")
    with pytest.raises(SystemExit, match="nvcc knows none of 70, only 75, 80,"):
        select(setting, ("70",), torch_cuda, (), NVCC)


def test_other_settings_are_refused() -> None:
    with pytest.raises(SystemExit, match="must be auto, on or off; got 'yes'"):
        select("yes", (), None, (), ())


def test_the_machine_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def program(name: str, *lines: str) -> str:
        path = tmp_path / name
        path.write_text("\n".join([f"#!{sys.executable}", *(f"print({line!r})" for line in lines)]))
        path.chmod(0o755)
        return str(path)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("FASTMETA_CUDA", "AUTO")
    for name in ("FASTMETA_CUDA_ARCHITECTURES", "CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    program("nvidia-smi", "9.0", "12.0")
    nvcc = program("nvcc", "compute_75", "compute_90", "compute_90a", "compute_120")
    assert cuda_selection.find_nvcc() == nvcc
    assert cuda_selection.known_architectures(nvcc) == ("75", "90", "90a", "120")
    assert cuda_selection.select_here("13.0", nvcc).architectures == ("90", "120")
    assert cuda_selection.select_here("13.0", None) == ((), "no working nvcc was found")
    monkeypatch.setenv("FASTMETA_CUDA_ARCHITECTURES", "75;90a")
    assert cuda_selection.select_here(None, nvcc).architectures == ("75", "90a")
    monkeypatch.setenv("FASTMETA_CUDA_ARCHITECTURES", "")
    program("nvidia-smi", "NVIDIA-SMI has failed because it couldn't communicate with the driver.")
    assert "no GPU" in cuda_selection.select_here("13.0", nvcc).reason
    monkeypatch.setenv("CUDACXX", program("another-nvcc"))
    assert cuda_selection.find_nvcc() == str(tmp_path / "another-nvcc")
    assert cuda_selection.known_architectures(str(tmp_path / "missing")) == ()


@pytest.mark.parametrize(
    ("line", "cuda"),
    [
        ("cuda: Optional[str] = None", None),
        ("cuda: Optional[str] = '13.0'", "13.0"),
        ("cuda = '12.8'", "12.8"),
    ],
)
def test_torch_is_read_without_importing_it(tmp_path: Path, line: str, cuda: str | None) -> None:
    text = f"__all__ = ['__version__', 'cuda']\n__version__ = '2.13.0'\n{line}\nhip = '6'\n"
    (tmp_path / "version.py").write_text(text)
    assert fastmeta_build.torch_cuda(tmp_path) == cuda
    assert fastmeta_build.torch_version(tmp_path) == "2.13.0"
