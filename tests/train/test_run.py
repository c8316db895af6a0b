"""Whole runs: their files, reproducibility, exact interruption and resumption."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastmeta import FOMAML, TaskBatch
from fastmeta.evaluation import MSE, Metric
from fastmeta.train import (
    CheckpointError,
    ConfigError,
    DivergedError,
    MissingPackageError,
    Run,
    Trainer,
    configure,
    evaluate_run,
    resume,
    train,
)
from fastmeta.train import trainer as trainer_module
from fastmeta.train.checkpoint import checkpoints, load_checkpoint

METHODS = (
    *("gsl", "fomaml", "maml", "maml++", "imaml", "meta-sgd", "reptile", "alfa", "robust-maml"),
    *("meta-rkhs-i", "meta-rkhs-ii", "amfs", "warpgrad", "warp-leap", "mgaug"),
)
INTERRUPTED: dict[str, dict[str, Any]] = {
    **{method: {"method": method} for method in METHODS},
    "b-small": {"method": "b-small"},
    "gradncp": {
        **{"method": "gradncp", "inner_steps": 2, "eval_inner_steps": 2, "clip_norm": 0.1},
        "adaptation_options": {"by": "random"},
    },
    "mamf": {"method": "mamf"},
    "spsa": {"aggregation": "spsa", "aggregation_options": {"alpha": 0.1, "beta": 0.3}},
    "moml": {"method": "moml", "train_data_options": {"grid": [2, 3]}},
}


def rows(folder: str) -> list[dict[str, str]]:
    with (Path(folder) / "log.csv").open() as file:
        return list(csv.DictReader(file))


def without_clock(folder: str) -> list[dict[str, str]]:
    return [
        {k: v for k, v in r.items() if k not in ("seconds", "tasks_per_second")}
        for r in rows(folder)
    ]


def scores(results: dict[str, Any] | None) -> list[Any]:
    assert results is not None
    return [results[k] for k in ("val", "test", "untrained", "untrained_long", "best_step")]


@pytest.mark.parametrize("method", METHODS)
def test_outputs_of_a_run(sine: dict[str, Any], method: str) -> None:
    results = train(configure({**sine, "method": method}))
    assert results is not None
    folder = Path("run")
    written = json.loads((folder / "results.json").read_text())
    assert {**written, "folder": "run"} == results
    assert written["backend"] == "compiled, cpu"
    assert written["test"]["tasks"] == 30
    assert written["test"]["ci95"] > 0
    assert written["steps"] == 12
    assert [p.name for p in checkpoints(folder)] == ["step-00000010.pt", "step-00000012.pt"]
    log = rows("run")
    assert [int(r["step"]) for r in log if r["split"] == "train"] == [3, 6, 9, 12]
    assert [int(r["step"]) for r in log if r["split"] == "val"] == [4, 8, 12]
    best = min(float(r["mse"]) for r in log if r["split"] == "val")
    assert written["val"]["mean"] == pytest.approx(best)
    assert json.loads((folder / "config.json").read_text())["method"] == method


def test_the_seed_determines_what_torch_draws(sine: dict[str, Any]) -> None:
    found = []
    # PCGrad draws the orders of its projections, ALFA the first layer of its network.
    drawn = {"aggregation": "pcgrad", "method": "alfa"}
    for k, seed in enumerate((0, 0, 1)):
        torch.manual_seed(k)
        run = configure({**sine, **drawn, "seed": seed, "out": f"run-{k}"})
        train(run)
        found.append(without_clock(f"run-{k}"))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_run_is_reproducible(sine: dict[str, Any]) -> None:
    first = train(configure(sine))
    second = train(configure({**sine, "out": "again"}))
    assert scores(first) == scores(second)
    assert without_clock("run") == without_clock("again")
    other = train(configure({**sine, "out": "other", "seed": 1}))
    assert scores(first) != scores(other)


def test_options_of_training_data_do_not_change_other_tasks(sine: dict[str, Any]) -> None:
    found = [
        train(configure({**sine, "out": name, "train_data_options": options}))
        for name, options in (("plain", {}), ("noisy", {"outliers": 0.5}))
    ]
    assert found[0]["untrained"] == found[1]["untrained"]
    assert found[0]["test"] != found[1]["test"]


def test_methods_share_test_tasks_and_initial_weights(sine: dict[str, Any]) -> None:
    found = [
        train(configure({**sine, "method": m, "out": m, "inner_steps": 1, "meta_batch": b}))
        for m, b in (("gsl", 4), ("fomaml", 2))
    ]
    assert found[0]["untrained"] == found[1]["untrained"]
    assert found[0]["test"] != found[1]["test"]


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupted_run_continues_exactly(
    sine: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sine |= INTERRUPTED[name]
    whole = train(configure({**sine, "out": "whole"}))
    step = trainer_module.Trainer._train_step

    def press_ctrl_c(self) -> None:
        step(self)
        if self.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "_train_step", press_ctrl_c)
        assert train(configure(sine)) is None
    assert not Path("run/results.json").exists()
    assert load_checkpoint(checkpoints(Path("run"))[-1])["step"] == 7
    parts = resume("run", {})
    assert scores(parts) == scores(whole)
    assert without_clock("run") == without_clock("whole")


def test_maml_plus_plus_has_a_batch_norm_for_each_inner_step() -> None:
    options = {"dataset": "digits", "method": "maml++", "steps": 2, "meta_batch": 1}
    options |= {"hidden": [4], "plots": False}
    options |= {"val_tasks": 2, "test_tasks": 2, "untrained_inner_steps": 0, "out": "run"}
    train(configure({**options, "inner_steps": 3}))
    content = load_checkpoint(Path("run/best.pt"))
    assert [len(rate) for rate in content["learner"]["rates"]] == [3] * (4 * (2 + 3 * 2) + 2)
    norms = {n.split(".steps.")[1][0] for n in content["learner"]["module"] if ".steps." in n}
    assert norms == {"0", "1", "2"}


def test_a_second_ctrl_c_aborts_at_once(
    sine: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def press_twice(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer_module.Trainer, "_train_step", press_twice)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(configure(sine))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_can_be_extended(sine: dict[str, Any]) -> None:
    train(configure({**sine, "steps": 8}))
    longer = resume("run", {"steps": 12})
    whole = train(configure({**sine, "out": "whole"}))
    assert scores(longer) == scores(whole)


def test_steps_since_a_corrupt_checkpoint_are_repeated(sine: dict[str, Any]) -> None:
    whole = train(configure({**sine, "out": "whole"}))
    taken = iter(range(1, 13))
    assert train(configure(sine), stop=lambda: next(taken) == 7) is None
    newest = checkpoints(Path("run"))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(RuntimeWarning, match=r"step-00000007\.pt is damaged .*step-00000005\.pt"):
        parts = resume("run", {})
    assert scores(parts) == scores(whole)
    assert without_clock("run") == without_clock("whole")


def test_options_a_resumed_run_cannot_change(sine: dict[str, Any]) -> None:
    train(configure(sine))
    with pytest.raises(ConfigError, match=r"keeps its lr: it has 0\.01, not 0\.5"):
        resume("run", {"lr": 0.5})
    with pytest.raises(ConfigError, match="has 12 steps already; got steps 3"):
        resume("run", {"steps": 3})
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        resume("elsewhere", {})


def test_a_run_is_never_overwritten(sine: dict[str, Any]) -> None:
    train(configure(sine))
    with pytest.raises(ConfigError, match="holds a run; continue it with --resume"):
        train(configure(sine))


def test_without_out_each_run_has_its_own_folder(sine: dict[str, Any]) -> None:
    del sine["out"]
    folders = [train(configure({**sine, "steps": 1}))["folder"] for _ in range(3)]
    assert folders == ["runs/sine-gsl-seed0", "runs/sine-gsl-seed0-2", "runs/sine-gsl-seed0-3"]


def test_evaluation_reproduces_the_test_score(sine: dict[str, Any]) -> None:
    results = train(configure(sine))
    found = evaluate_run("run", {})
    assert found["test"] == results["test"]
    assert found["step"] == results["best_step"]
    more = evaluate_run("run/best.pt", {"test_tasks": 50, "eval_inner_steps": 3})
    assert more["test"]["tasks"] == 50
    assert more["test"]["inner_steps"] == 3


def test_a_run_ends_with_the_learned_rates_of_its_best_step(
    sine: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Metric, "better", lambda *_: False)  # the first validation stays the best
    results = train(configure({**sine, "method": "meta-sgd"}))
    assert results["best_step"] == 4
    assert evaluate_run("run", {})["test"] == results["test"]


def test_both_logs(sine: dict[str, Any]) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(configure({**sine, "log": "both"}))
    events = EventAccumulator("run/tensorboard")
    events.Reload()
    values = [e.value for e in events.Scalars("val/mse")]
    assert values == pytest.approx([float(r["mse"]) for r in rows("run") if r["split"] == "val"])


def test_divergence_is_named(sine: dict[str, Any]) -> None:
    with pytest.raises(DivergedError, match=r"diverged\. Lower inner_lr"):
        train(configure({**sine, "inner_lr": 1e30}))


def test_divergence_on_test_tasks_is_named(sine: dict[str, Any]) -> None:
    train(configure(sine))
    with pytest.raises(DivergedError, match=r"which diverge on some tasks\. Lower inner_lr"):
        evaluate_run("run", {"inner_lr": 1e30})


def test_a_missing_package_is_named_before_training(
    sine: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r'pip install "fastmeta\[train\]"'):
        train(configure({**sine, "plots": True}))
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"dataset": "omniglot", "data_root": "nowhere"}, "nowhere"),
        ({"dataset": "digits", "data_options": {"rotation": True}}, "rotation"),
        ({"dataset": "digits", "ways": 100}, "100"),
        ({"dataset": "digits", "metagrad_options": {"etta": 1}}, "etta"),
        ({"dataset": "digits", "metagrad_options": {"variant": "R7"}}, "R0, R1, R2, R2p, R3"),
        ({"method": "imaml", "engine": "batched"}, "Implicit does not declare task_batchable"),
        ({"device": "tpu"}, "device"),
        ({"device": "meta"}, "kernels for cpu and cuda"),
    ],
)
def test_unavailable_resources_are_named(sine: dict[str, Any], options: dict, part: str) -> None:
    base = sine if "dataset" not in options else {"steps": 1, "out": "run"}
    with pytest.raises(ConfigError, match=part):
        train(configure({**base, **options}))
    assert not checkpoints(Path("run"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu(sine: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs a GPU seen by torch"):
        train(configure({**sine, "device": "cuda"}))


@pytest.mark.parametrize("dataset", ["digits", "sine"])
def test_the_plot(sine: dict[str, Any], dataset: str) -> None:
    options = {**sine, "plots": True, "steps": 3}
    if dataset == "digits":
        options = {k: v for k, v in options.items() if k not in ("dataset", "hidden", "meta_batch")}
        options |= {"dataset": "digits", "hidden": [8], "meta_batch": 2, "untrained_inner_steps": 0}
    results = train(configure(options))
    assert "untrained_long" not in results or dataset == "sine"
    with Image.open("run/curves.png") as picture:
        picture.load()
        assert picture.width > 1000
        assert len(picture.convert("L").getcolors(1 << 16) or ()) > 10


def test_a_trainer_takes_any_source_of_tasks(sine: dict[str, Any], tmp_path: Path) -> None:
    class Lines:
        ways = None

        def __getitem__(self, index: int) -> TaskBatch:
            draw = torch.Generator().manual_seed(index)
            slope, x = (torch.randn(s, generator=draw) for s in ((4, 1, 1), (4, 15, 1)))
            y = slope * x
            return TaskBatch(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:])

    config = configure({**sine, "steps": 4})
    learner = FOMAML(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss, inner_lr=0.1)
    run = Run(
        config=config,
        folder=tmp_path / "lines",
        device=torch.device("cpu"),
        metric=MSE,
        learner=learner,
        sources={"train": Lines(), "val": Lines()},
    )
    trainer = Trainer(run)
    assert trainer.fit()
    assert trainer.best is not None
    assert trainer.best.val.tasks == config.val_tasks
    assert [path.name for path in checkpoints(run.folder)] == ["step-00000004.pt"]
