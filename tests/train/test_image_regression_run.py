"""Runs whose tasks are images: their network, score, clipping and picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastmeta.adaptation import PrunedSupport
from fastmeta.cli.report import report
from fastmeta.evaluation import PSNR
from fastmeta.metagrad import Bootstrapped
from fastmeta.models import SIREN
from fastmeta.train import ConfigError, configure, train
from fastmeta.train.builders import build_learner, build_module
from fastmeta.train.export import inputs_of
from fastmeta.train.sources import task_source

OPTIONS: dict[str, Any] = {
    "dataset": "image-regression",
    "data_options": {"of": "digits", "size": 4},
    "method": "gradncp",
    "hidden": [8, 8],
    "inner_steps": 1,
    "eval_inner_steps": 2,
    "untrained_inner_steps": 0,
    "steps": 2,
    "meta_batch": 2,
    "val_every": 2,
    "val_tasks": 2,
    "test_tasks": 2,
    "out": "run",
}


def test_a_run() -> None:
    results = train(configure(OPTIONS))
    assert results is not None
    assert results["metric"] == "psnr"
    assert Path("run/curves.png").stat().st_size > 0
    printed = report([results])
    assert f"{results['test']['mean']:.2f} ± {results['test']['ci95']:.2f} dB" in printed
    assert "chance" not in printed


def test_what_is_built_and_clipped() -> None:
    config = configure({**OPTIONS, "clip_norm": 1e-3, "optimizer": "sgd", "lr": 1.0})
    source = task_source(config, "train", torch.device("cpu"))
    module = build_module(config, source, torch.device("cpu"))
    learner = build_learner(config, module)
    assert isinstance(module, SIREN)
    assert isinstance(learner.adaptation, PrunedSupport)
    assert isinstance(learner.metagrad, Bootstrapped)
    assert inputs_of(source).kind is None
    before = [p.detach().clone() for p in module.parameters()]
    learner.step(source[0])
    moved = [(p - q).flatten() for p, q in zip(module.parameters(), before, strict=True)]
    assert torch.cat(moved).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_options_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="needs backbone mlp or siren; got conv4"):
        configure({**OPTIONS, "backbone": "conv4"})
    with pytest.raises(ConfigError, match="without classes: it needs ways 1; got 5"):
        configure({**OPTIONS, "ways": 5})


def test_the_score_is_the_ratio_of_signal_and_noise_of_each_image() -> None:
    targets = torch.rand(3, 16, 2)
    outputs = targets + 0.1 * torch.randn(3, 16, 2)
    for found, output, target in zip(PSNR.scores(outputs, targets), outputs, targets, strict=True):
        error = F.mse_loss(output, target)
        assert found.item() == pytest.approx(10 * torch.log10(1 / error).item(), rel=1e-5)
    assert PSNR.better(21.0, 20.0)
    assert PSNR.loss(18.0, 20.0) == pytest.approx(10)
    assert PSNR.show(20.123, 0.456) == "20.12 ± 0.46 dB"
