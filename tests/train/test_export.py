"""An exported run gives the same logits with torch alone, without fastmeta."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmeta import TaskBatch
from fastmeta.cli import main
from fastmeta.train import configure, resume, train
from fastmeta.train.export import load_export
from fastmeta.train.saved import load_run
from tests.helpers import markdown

pytest.importorskip("safetensors", reason="safetensors is not installed")

DIGITS = {
    **{"dataset": "digits", "hidden": [4], "meta_batch": 2, "steps": 2, "val_tasks": 2},
    **{"test_tasks": 2, "untrained": False, "plots": False, "out": "run", "eval_queries": 5},
}
# The code of the page up to the example; an import of fastmeta would raise an error.
WITHOUT_FASTMETA = """
import sys
sys.modules["fastmeta"] = None
{recipe}
network, about = load("out.safetensors")
x, y, query_x = torch.load("task.pt")
loss = F.mse_loss if about["dataset"] == "sine" else F.cross_entropy
network.double().train({training})
adapt(network, x, y, loss, float(about["inner_lr"]), int(about["eval_inner_steps"]))
torch.save(network(query_x).detach(), "found.pt")
"""


def recipe() -> str:
    page = (markdown.ROOT / "docs/how-to/export.md").read_text()
    (code,) = [b.code for b in markdown.blocks(page, "python") if b.options.get("title")]
    return code[: code.index("\nnetwork, about")]


def exported(options: dict[str, Any]) -> dict[str, str]:
    """The metadata of the run's export, which is ``out.safetensors``."""
    from safetensors import safe_open

    train(configure(options))
    assert main(["export", "run", "out.safetensors"]) == 0
    with safe_open("out.safetensors", "pt") as file:
        return {**file.metadata(), "names": " ".join(file.keys())}


@pytest.mark.parametrize(
    "options",
    [
        {"method": "maml"},
        {"method": "cml"},
        {"method": "gsl", "downsample": "stride", "batch_norm_stats": True},
        {"dataset": "sine", "method": "cml", "hidden": [6, 5]},
    ],
    ids=["conv4", "co-learner", "stride", "mlp"],
)
def test_the_same_logits_without_fastmeta(options: dict[str, Any]) -> None:
    about = exported({**DIGITS, **options, "seed": int(torch.randint(1000, ()))})
    assert about["method"] == options["method"]
    assert "co_learner" not in about["names"]
    run = load_run("run", {})
    # In float64, so that BatchNorm of a few equal numbers does not magnify rounding.
    batch = TaskBatch(
        **{
            k: t.double() if t is not None and t.is_floating_point() else t
            for k, t in vars(run.sources["test"][0].part(0, 1)).items()
        }
    )
    training = bool(torch.rand(()) < 0.5)
    run.learner.module.double().train(training)
    if run.learner.co_learner is not None:
        run.learner.co_learner.head.double()
    expected = run.learner.predict(batch, run.config.eval_inner_steps)

    torch.save(batch[0][:3], "task.pt")
    code = WITHOUT_FASTMETA.format(recipe=recipe(), training=training)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    torch.testing.assert_close(torch.load("found.pt"), expected[0], rtol=1e-7, atol=1e-7)


def test_metadata() -> None:
    about = exported({**DIGITS, "method": "anil", "inner_steps": 2})
    del about["names"]
    assert about.pop("format") == "pt"
    assert about.pop("fastmeta")
    assert about.pop("arguments") == json.dumps(
        {
            **{"in_channels": 1, "image_size": 8, "ways": 5, "batch_norm_stats": False},
            **{"pool_last": True, "hidden": 4, "downsample": "pool"},
        }
    )
    words = {name: about.pop(name) for name in ("method", "adaptation", "backbone", "dataset")}
    assert words == {
        **{"method": "anil", "adaptation": "anil", "backbone": "conv4", "dataset": "digits"}
    }
    assert {name: json.loads(text) for name, text in about.items()} == {
        **{"adaptation_options": {}, "inner_lr": 0.4, "inner_steps": 2, "eval_inner_steps": 3},
        **{"data_options": {}, "ways": 5, "shots": 1, "normalization": None, "step": 2},
        **{"inputs": "images", "input_shape": [1, 8, 8], "sparse": False, "kl_weight": 0.0},
    }


@pytest.mark.parametrize(("adaptation", "co_learner"), [("meta-sgd", True), ("lslr", False)])
def test_learned_rates_have_their_parameters_names(adaptation: str, co_learner: bool) -> None:
    from safetensors.torch import load_file

    exported({**DIGITS, "method": "maml", "adaptation": adaptation, "co_learner": co_learner})
    found = load_file("out.safetensors")
    names = [name for name in found if not name.startswith("inner_lr.")]
    assert {name for name in found if name not in names} == {f"inner_lr.{name}" for name in names}
    learner = load_run("run", {}).learner
    assert torch.equal(found["inner_lr.features.0.0.weight"], learner.adaptation.rates[0])
    if adaptation == "meta-sgd":
        assert all(found[f"inner_lr.{name}"].shape == found[name].shape for name in names)


def test_what_a_closed_form_learns_is_exported() -> None:
    from safetensors.torch import load_file

    exported({**DIGITS, "method": "meta-rkhs-ii", "lr": 0.1})
    run, other = load_run("run", {}), load_export("out.safetensors", {})
    (scale,) = run.learner.adaptation.rates
    assert torch.equal(load_file("out.safetensors")["adaptation.0"], scale)
    assert scale.exp().item() != pytest.approx(10)
    assert other.config.adaptation == "ntk"
    task = run.sources["test"][0][0]
    assert torch.equal(other.learner.predict(task), run.learner.predict(task))


def test_errors(
    sine: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refused(arguments: str, part: str) -> None:
        assert main(["export", *arguments.split()]) == 2
        assert part in capsys.readouterr().err

    steps = iter([False] * 5)
    assert train(configure(sine), stop=lambda: next(steps, True)) is None
    refused("run out.safetensors", "run: expected a finished run; found no results.json")
    assert main(["export", "run/best.pt", "out.safetensors"]) == 0
    assert resume("run", {}) is not None
    steps = iter([False] * 5)
    assert resume("run", {"steps": 100}, stop=lambda: next(steps, True)) is None
    refused("run again.safetensors", "run: expected a finished run; found no results.json")
    refused("nowhere out.safetensors", "no such checkpoint")
    Path("folder").mkdir()
    refused("run/best.pt folder", "folder: cannot be written")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("run/best.pt again.safetensors", 'pip install "fastmeta[train]"')
    assert not Path("again.safetensors").exists()
