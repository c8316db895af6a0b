"""CML and ResNet-12 from the command line, and their final evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmeta.cli import main
from fastmeta.data import SineTasks
from fastmeta.evaluation import Metric
from fastmeta.models import BACKBONES, MLP, Conv4, ResNet12
from fastmeta.train import ConfigError, configure, evaluate_run, resume, train
from fastmeta.train.builders import build_co_learner, build_learner, build_module
from fastmeta.train.checkpoint import load_checkpoint
from fastmeta.train.sources import task_source

CPU = torch.device("cpu")
DIGITS = "--dataset digits --hidden 4 --meta-batch 2 --steps 2 --val-tasks 4 --test-tasks 10"
DIGITS += " --untrained-inner-steps 0 --eval-queries 5 --no-plots --out run"


@pytest.mark.parametrize("backbone", ["conv4", "resnet12"])
@pytest.mark.parametrize("method", ["cml", "gsl --co-learner --gamma 0.5"])
def test_images(method: str, backbone: str, capsys: pytest.CaptureFixture) -> None:
    assert main(f"train --method {method} --backbone {backbone} {DIGITS}".split()) == 0
    config = json.loads(Path("run/config.json").read_text())
    assert config["co_learner"]
    assert config["gamma"] == (1.0 if method == "cml" else 0.5)
    tests = {}
    for head in ("main", "co-learner", "co-learner-alone"):
        assert main(f"evaluate run --co-test {head} --json found.json".split()) == 0
        tests[head] = json.loads(Path("found.json").read_text())["test"]["mean"]
    assert tests["main"] == json.loads(Path("run/results.json").read_text())["test"]["mean"]
    capsys.readouterr()


def test_a_run_keeps_its_best_co_learner(
    sine: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Metric, "better", lambda *_: False)  # the first validation stays the best
    options = {
        **sine,
        **{"method": "cml", "co_test": "co-learner", "plots": True},
    }
    results = train(configure(options))
    assert results["best_step"] == 4
    assert results["config"]["gamma"] == 0.2
    assert evaluate_run("run", {})["test"] == results["test"]
    main_head = evaluate_run("run", {"co_test": "main"})["test"]
    assert main_head["mean"] != results["test"]["mean"]
    again = resume("run", {"co_test": "main"})
    assert again["test"] == main_head
    assert again["untrained"] == results["untrained"]  # always of the main head


def test_co_learner_of_each_backbone() -> None:
    for options, kind, at, params in (
        ({}, Conv4, "features", 9 * 32 * 64 + 9 * 64 * 64 + 2 * 3 * 64 + 5 * 64 + 5),
        ({"dataset": "sine"}, MLP, "layers.4", 40 * 40 + 40 + 40 + 1),
        ({"dataset": "sine", "hidden": []}, MLP, "layers.0", 1 + 1 + 1 + 1),
        ({"backbone": "resnet12", "hidden": [2]}, ResNet12, "features", None),
        ({"backbone": "resnet12", "hidden": [2, 3, 4, 5]}, ResNet12, "features", None),
    ):
        config = configure({"method": "cml", **options})
        source = task_source(config, "train", CPU)
        module = build_module(config, source, CPU)
        assert type(module) is kind
        state = torch.get_rng_state()
        co_learner = build_co_learner(config, module)
        assert torch.equal(torch.get_rng_state(), state)
        assert co_learner.at == at
        if params is not None:
            assert sum(p.numel() for p in co_learner.head.parameters()) == params
        else:
            widths = [block.path[0].out_channels for block in module.features[::2]]
            assert widths == ([2, 4, 8, 16] if len(options["hidden"]) == 1 else [2, 3, 4, 5])
        again = build_co_learner(config, module)
        pairs = zip(co_learner.head.parameters(), again.head.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        build_learner(config, module).step(source[0])


def test_the_network_is_initialized_as_without_a_co_learner() -> None:
    modules = []
    for method in ("cml", "maml"):
        config = configure({"method": method})
        modules.append(build_module(config, task_source(config, "train", CPU), CPU))
    for a, b in zip(*(m.parameters() for m in modules), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_include_the_co_learner(sine: dict[str, Any]) -> None:
    train(configure({**sine, "method": "cml"}))
    saved = load_checkpoint(Path("run/best.pt"))["learner"]["co_learner"]
    assert {n: tuple(t.shape) for n, t in saved.items()} == {
        "layers.1.weight": (8, 8), "layers.1.bias": (8,),
        "layers.3.weight": (1, 8), "layers.3.bias": (1,),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"co_test": "co-learner"}, "co_test 'co-learner' needs a co-learner, as method cml has"),
        ({"method": "cml", "co_test": "dagger"}, "co_test must be one of main, co-learner, co-l"),
        ({"gamma": -1}, "gamma must be at least 0"),
        ({"backbone": "resnet12", "hidden": [1, 2]}, r"one or four numbers as hidden; got \[1, 2"),
    ],
)
def test_incompatible_options_are_refused(options: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        configure(options)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"method": "cml", "co_learner": False}, "method 'cml': method 'cml' is MAML with a co-le"),
        ({"method": "reptile", "co_learner": True}, "method 'reptile': .*metagrad.Reptile has no"),
    ],
)
def test_unsupported_architectures_are_refused(
    sine: dict[str, Any], options: dict[str, Any], part: str
) -> None:
    config = configure({**sine, **options})
    source = SineTasks(2, 5, 5, 0)
    with pytest.raises(ConfigError, match=part):
        build_learner(config, build_module(config, source, CPU))


def test_a_backbone_without_a_co_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(BACKBONES["conv4"], co_learner=None)
    monkeypatch.setitem(BACKBONES.own, "conv4", spec)
    with pytest.raises(ConfigError, match="no co-learner is known for backbone 'conv4'"):
        build_co_learner(configure({"method": "cml"}), torch.nn.Linear(1, 1))
