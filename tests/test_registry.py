"""Registries, and the names that installed distributions add by entry points."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastmeta
from fastmeta.cli import main
from fastmeta.data import load
from fastmeta.learners import METHODS, MethodSpec, build
from fastmeta.registry import PluginError, Registry
from fastmeta.train import ConfigError, configure

CODE = """
import torch
from fastmeta.adaptation import SGD
from fastmeta.aggregation import Mean
from fastmeta.data import ClassDataset
from fastmeta.learners import MethodSpec
from fastmeta.metagrad import FirstOrder
from fastmeta.models import MLP, BackboneSpec

class Double(SGD):
    def __init__(self, lr, steps=1):
        super().__init__(2 * lr, steps)

TWICE = MethodSpec("double", "mine", "ours")
NOT_A_SPEC = ("sgd", "exact", "mean")

def wide(options):
    width = options.hidden[0] if options.hidden else 3
    sizes = {"in_features": options.input_shape.numel(), "out_features": options.ways}
    return {**sizes, "hidden": [width]}

WIDE = BackboneSpec(network=MLP, arguments=wide, kinds={"images"}, hidden_counts=(0, 1))

def load_squares(root, split, *, size=6):
    assert root is None or root == "there", root
    images = torch.randint(256, (60, 1, size, size), dtype=torch.uint8)
    return ClassDataset(images, torch.arange(6).repeat(10), [f"{split}{i}" for i in range(6)])
"""
ENTRIES = """
[fastmeta.methods]
twice = toy_plugins:TWICE
tuple = toy_plugins:NOT_A_SPEC
[fastmeta.adaptations]
double = toy_plugins:Double
[fastmeta.metagrads]
mine = toy_plugins:FirstOrder
[fastmeta.aggregations]
ours = toy_plugins:Mean
gone = toy_plugins:gone
absent = toy_absent
[fastmeta.datasets]
squares = toy_plugins:load_squares
[fastmeta.backbones]
wide = toy_plugins:WIDE
"""


def distribution(folder: Path, name: str, entries: str, code: str = "") -> None:
    """Metadata that pip writes to site-packages."""
    information = folder / f"{name}-1.5.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (information / "entry_points.txt").write_text(entries)
    if code:
        (folder / f"{name.replace('-', '_')}.py").write_text(code)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on ``sys.path`` with a distribution that adds a name of each kind."""
    folder = tmp_path / "site"
    distribution(folder, "toy-plugins", ENTRIES, CODE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTMETA_DATA", raising=False)
    monkeypatch.delitem(sys.modules, "toy_plugins", raising=False)
    return folder


def test_trains_from_the_command_line(site: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)]),
    }

    def run(arguments: str) -> str:
        command = [sys.executable, "-m", "fastmeta", *arguments.split()]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        return result.stdout

    sizes = "--steps 2 --meta-batch 2 --hidden 4 --val-tasks 2 --test-tasks 2 --queries 2"
    out = run(
        f"train --dataset squares --data-option size=5 --data-root there --method twice {sizes} "
        "--eval-queries 2 --no-untrained --no-plots --out run --backbone wide"
    )
    assert "squares: accuracy" in out
    assert "twice, 3 inner steps" in out
    assert "accuracy" in run("evaluate run")


def test_plugins_are_listed(site: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "plug-in:      dataset squares, of toy-plugins 1.5" in printed
    assert "plug-in:      metagrad mine, of toy-plugins 1.5" in printed
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "squares" in capsys.readouterr().out
    assert "toy_plugins" not in sys.modules  # not imported before it is used


def test_in_python(site: Path) -> None:
    learner = build("twice", torch.nn.Linear(2, 2), F.cross_entropy, inner_lr=0.1)
    assert type(learner.adaptation).__name__ == "Double"
    assert learner.adaptation.lr == 0.2
    assert load("squares", "val", size=3).class_names[0] == "val0"
    config = configure({"dataset": "squares", "method": "twice"})
    assert (config.adaptation, config.backbone, config.jitter_shift) == ("double", "conv4", 0)
    weight = torch.ones(2, requires_grad=True)
    assert fastmeta.aggregate([weight.sum()] * 2, [weight], "ours").tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"unknown method 'thrice'; expected one of alfa, .*twice"):
        METHODS["thrice"]
    with pytest.raises(ConfigError, match=r"one of .*twice.*; got 'twic'\. Did you mean 'twice'"):
        configure({"method": "twic"})
    with pytest.raises(ValueError, match=r"unknown dataset 'x'; expected one of glyphs, .*squares"):
        load("x", "train")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "gone",
            r"the aggregation 'gone' of toy-plugins 1\.5 \(toy_plugins:gone\) cannot be imported: "
            "AttributeError: .*gone.*Fix or uninstall it",
        ),
        ("absent", "toy-plugins 1.5 .toy_absent. cannot be imported: ModuleNotFoundError: .*toy_a"),
    ],
)
def test_broken_plugins_are_named(
    site: Path, name: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    options = ["train", "--dataset", "sine", "--aggregation", name, "--no-plots"]
    assert main(options) == 2
    assert "of toy-plugins 1.5" in capsys.readouterr().err
    with pytest.raises(PluginError, match=message):
        build("maml", torch.nn.Linear(2, 2), F.mse_loss, inner_lr=0.1, aggregation=name)


def test_objects_of_another_kind_are_refused(site: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "--method", "tuple"]) == 2
    assert capsys.readouterr().err == (
        "fastmeta: the method 'tuple' of toy-plugins 1.5 (toy_plugins:NOT_A_SPEC) must be a "
        "MethodSpec; got ('sgd', 'exact', 'mean'). Fix or uninstall it.\n"
    )


@pytest.mark.parametrize(
    ("name", "owner"), [("maml", "fastmeta"), ("twice", r"(toy-plugins|other-toy) 1\.5")]
)
def test_a_name_registered_twice_is_refused(
    site: Path, name: str, owner: str, capsys: pytest.CaptureFixture
) -> None:
    distribution(site, "other-toy", f"[fastmeta.methods]\n{name} = os:sep\n")
    message = rf"(other-toy|toy-plugins) 1\.5 registers the method '{name}', which {owner} already"
    with pytest.raises(PluginError, match=message):
        METHODS["another"]
    assert METHODS["gsl"] == MethodSpec(metagrad="gsl")  # plug-ins are not looked at
    assert configure({"dataset": "sine", "method": "gsl"}).method == "gsl"
    assert main(["info"]) == 2
    assert f"registers the method {name!r}" in capsys.readouterr().err


def test_a_registry_is_a_mapping() -> None:
    registry: Registry[int] = Registry("number", {"one": 1, "two": 2})
    assert dict(registry) == {"one": 1, "two": 2}
    assert registry["one"] == 1
    assert registry.get("three") is None
    with pytest.raises(KeyError):
        registry["three"]
    message = r"^unknown number 'tow'; expected one of one, two\. Did you mean 'two'\?$"
    with pytest.raises(ValueError, match=message):
        registry["tow"]
    registry["three"] = 3
    assert list(registry) == ["one", "two", "three"]
    assert len(registry) == 3
