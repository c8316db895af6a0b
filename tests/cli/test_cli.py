"""The installed command, as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastmeta.cli import main

pytestmark = pytest.mark.usefixtures("working_directory")

SMALL = "--dataset digits --hidden 8 --meta-batch 2 --val-every 4 --val-tasks 10 --test-tasks 20"
SMALL += " --untrained-inner-steps 2 --out run"


def fastmeta(arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "fastmeta", *arguments.split()],
        capture_output=True,
        text=True,
        check=False,
    )


def test_train_then_evaluate() -> None:
    Path("run.toml").write_text("steps = 99\nmethod = 'fomaml'\n[metagrad_options]\neta = 9.0\n")
    result = fastmeta(
        f"train --config run.toml --method gsl --metagrad-option eta=0.2 --steps 6 {SMALL}"
    )
    assert result.returncode == 0, result.stderr
    assert "gsl, 3 inner steps" in result.stdout
    assert "untrained, 2 inner steps" in result.stdout
    assert "over 20 tasks" in result.stdout
    assert "tasks/s" in result.stdout
    results = json.loads(Path("run/results.json").read_text())
    assert results["config"]["metagrad_options"] == {"eta": 0.2}
    assert results["steps"] == 6
    assert Path("run/curves.png").stat().st_size > 10_000
    assert "results.json and curves.png: run" in result.stdout

    again = fastmeta("evaluate run --json found.json")
    assert again.returncode == 0, again.stderr
    assert json.loads(Path("found.json").read_text())["test"] == results["test"]
    assert "accuracy: " in again.stdout
    lslr = fastmeta("evaluate run --adaptation lslr")
    assert lslr.returncode == 2
    assert "adaptation 'lslr' needs 18 tensors of learned rates, but this run has 0" in lslr.stderr
    assert lslr.stderr.count("\n") == 1


def test_a_run_without_plots_announces_none() -> None:
    result = fastmeta(f"train --steps 1 --no-plots --no-untrained {SMALL}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("log, checkpoints, results.json: run\n")
    assert not Path("run/curves.png").exists()


def test_methods_in_one_table(capsys: pytest.CaptureFixture) -> None:
    tiny = "--dataset sine --hidden 4 --steps 1 --meta-batch 1 --val-tasks 2 --test-tasks 20"
    assert main(f"train {tiny} --no-plots --out run --compare fomaml maml".split()) == 0
    rows = capsys.readouterr().out.splitlines()
    titles = ["gsl, 10", "fomaml, 10", "maml, 10", "untrained, 10", "untrained, 100"]
    assert [row.partition(" inner")[0].strip() for row in rows[1:-1]] == titles
    assert rows[-1] == "log, checkpoints, results.json: run, run-fomaml, run-maml"
    controls = json.loads(Path("run/results.json").read_text())
    for name in ("fomaml", "maml"):
        other = json.loads(Path(f"run-{name}/results.json").read_text())
        assert "untrained" not in other
        assert other["config"]["steps"] == controls["config"]["steps"]
    assert main(["train", "--resume", "run", "--compare", "maml"]) == 2


def test_ctrl_c_saves_and_exits_with_130() -> None:
    arguments = f"train --steps 100000 --checkpoint-every 100000 {SMALL}".split()
    with subprocess.Popen(
        [sys.executable, "-m", "fastmeta", *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not Path("run/best.pt").exists():  # it has begun
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "continue with --resume" in errors
    assert "Traceback" not in errors
    (checkpoint,) = Path("run").glob("step-*.pt")
    done = int(checkpoint.stem.removeprefix("step-"))
    resumed = fastmeta(f"train --resume run --steps {done + 2}")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(Path("run/results.json").read_text())["steps"] == done + 2


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("train --dataset digits --metagrad-option eta", "takes KEY=VALUE"),
        ("train --dataset omniglot --data-root nowhere", "nowhere"),
        ("train --config none.toml", "none.toml: cannot be read"),
        ("train --resume none", "no such checkpoint"),
        ("evaluate none", "no such checkpoint"),
        ("train --ways 1", "at least 2 ways"),
    ],
)
def test_errors_take_one_line(arguments: str, part: str, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments.split()) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("fastmeta: ")
    assert part in errors
    assert errors.count("\n") == 1


def test_info(capsys: pytest.CaptureFixture) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for part in ("backend:      compiled", "CPU kernels:", "threads", "methods:", "gsl", "digits"):
        assert part in printed


def test_every_option_has_a_flag_and_help(capsys: pytest.CaptureFixture) -> None:
    from fastmeta.train.config.schema import option_names

    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = capsys.readouterr().out
    for name in option_names():
        assert f"--{name.replace('_', '-').removesuffix('options')}" in printed
