"""A wrong command or option ends in one line that names it and says what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmeta.cli import main

METAGRAD = "train --metagrad-option"
CORRECTION = f"{METAGRAD} variant=correction --metagrad-option"
AGGREGATION = "train --aggregation gsl --aggregation-option"
# Arguments, and what the message says.
CASES = [
    # --- usage
    ("", "the following arguments are required: COMMAND"),
    ("trian", "unknown command 'trian'. Did you mean 'train'? Commands: train, evaluate,"),
    ("train --wayss 5", "unknown option --wayss. Did you mean '--ways'?"),
    ("train --wayss=5", "unknown option --wayss. Did you mean '--ways'?"),
    ("evaluate run --tset-tasks 5", "unknown option --tset-tasks. Did you mean '--test-tasks'?"),
    ("train more", "unknown argument more"),
    ("train --ways", "argument --ways: expected one argument"),
    ("tune-pattern run --tasks many", "argument --tasks: invalid int value: 'many'"),
    ("info gls", "unknown name 'gls'. Did you mean 'gsl'?"),
    # --- options of a run
    ("train --ways five", "ways must be an integer; got 'five'"),
    ("train --hidden 8 b", "hidden must be a list of integers; got [8, 'b']"),
    ("train --lr nan", "lr must be a finite number; got nan"),
    (
        "train --optimizer adm",
        "optimizer must be one of adam, sgd; got 'adm'. Did you mean 'adam'?",
    ),
    ("train --method gls", "got 'gls'. Did you mean 'gsl'?"),
    ("train --dry-run --resume run", "--dry-run is for new runs; leave out --resume"),
    # --- the meta-gradient
    (f"{METAGRAD} eta=abc", "metagrad 'gsl': eta must be a number; got 'abc'"),
    (f"{METAGRAD} eta=nan", "eta must be a number; got 'nan'"),
    (f"{METAGRAD} eta=NaN", "eta must be a finite number, got nan"),
    (f"{METAGRAD} eta=Infinity", "eta must be a finite number, got inf"),
    (f"{METAGRAD} lam_c=abc", "lam_c must be a number; got 'abc'"),
    (f"{CORRECTION} ratio=abc", "ratio must be a number; got 'abc'"),
    (f"{CORRECTION} ratio=-1", "ratio must be a finite number of at least 0, got -1"),
    (f"{METAGRAD} layers=3", "layers must be a string; got 3"),
    (f"{METAGRAD} schedule=3", "schedule must be a string; got 3"),
    (f"{METAGRAD} ratio=1", "metagrad 'gsl' has no option 'ratio'. Options: eta, lam_d, lam_c,"),
    (f"{METAGRAD} etta=0.3", "metagrad 'gsl' has no option 'etta'. Did you mean 'eta'? Options:"),
    (f"{CORRECTION} magnitude=inner", "magnitude must be one of"),
    (f"{METAGRAD} variant=R2 --metagrad-option w_min=abc", "w_min must be a number; got 'abc'"),
    (f"{METAGRAD} variant=R4 --metagrad-option every=abc", "every must be an integer; got 'abc'"),
    (
        "train --metagrad exact --metagrad-option a=3",
        "metagrad 'exact' has no option 'a'. Options: layers",
    ),
    (
        "train --metagrad recursion --metagrad-option graphs=abc",
        "graphs must be an integer or none",
    ),
    (
        "train --metagrad central-difference --metagrad-option radius=abc",
        "radius must be a number or none; got 'abc'",
    ),
    # --- the aggregation
    (f"{AGGREGATION} tau=0", "aggregation 'gsl': tau must be a positive finite number, got 0"),
    (f"{AGGREGATION} tau=abc", "aggregation 'gsl': tau must be a number; got 'abc'"),
    (f"{AGGREGATION} rule=abc", "rule must be one of softmax, linear; got 'abc'"),
    ("train --aggregation cagrad --aggregation-option c=abc", "c must be a number; got 'abc'"),
    ("train --aggregation mean --aggregation-option c=1", "aggregation 'mean' has no option 'c'"),
    # --- the adaptation
    ("train --adaptation-option momentum=abc", "momentum must be a number; got 'abc'"),
    ("train --adaptation-option momentum=1", "momentum must be a number in [0, 1), got 1"),
    ("train --adaptation-option lr=1", "adaptation 'sgd' has no option 'lr'"),
    ("train --adaptation adam --adaptation-option eps=abc", "eps must be a number; got 'abc'"),
    (
        "train --adaptation adam --adaptation-option betas=3",
        "betas must be a list [a number, a numb",
    ),
    ("train --adaptation proximal --adaptation-option lam=abc", "lam must be a number; got 'abc'"),
    (
        "train --adaptation anil --adaptation-option of=abc",
        "of must be one of adam, adamw, alfa, lslr, meta-sgd,",
    ),
    ("train --adaptation anil --adaptation-option momentm=0", "Did you mean 'momentum'?"),
    # --- the dataset
    (
        "train --dataset digits --data-option rotations=abc",
        "dataset 'digits': rotations must be true or false; got",
    ),
    (
        "train --dataset digits --data-option rotation=true",
        "has no option 'rotation'. Did you mean 'rotations'?",
    ),
    (
        "train --dataset sine --data-option amplitude=abc",
        "amplitude must be a list [a number, a numb",
    ),
    ("train --dataset sine --data-option amplitude=[2,1]", "amplitude must be two finite numbers"),
    (
        "train --dataset sine --data-option x=[0,Infinity]",
        "x must be two finite numbers, the smalle",
    ),
    ("train --dataset omniglot --data-option image_size=abc", "image_size must be an integer; got"),
]


@pytest.mark.parametrize(("arguments", "message"), CASES, ids=[case[0] for case in CASES])
def test_errors_take_one_line(
    arguments: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("fastmeta: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
