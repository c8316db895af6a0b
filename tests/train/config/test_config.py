"""Configurations from flags and files."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from fastmeta.data import DATASETS, DatasetSpec, SineTasks
from fastmeta.learners import METHODS
from fastmeta.train import ConfigError, TrainConfig, configure, read_config
from fastmeta.train.config import presets

OPTIONS = {
    "dataset": "omniglot",
    "ways": 20,
    "lr": 1e-3,
    "hidden": [48],
    "plots": False,
    "metagrad_options": {"eta": 0.2, "variant": "R1"},
}
FILES = {
    "a.toml": """
        dataset = "omniglot"
        ways = 20
        lr = 1e-3
        hidden = [48]
        plots = false
        [metagrad_options]
        eta = 0.2
        variant = "R1"
    """,
    "a.yaml": """
dataset: omniglot
ways: 20
lr: 1e-3
hidden: [48]
plots: false
metagrad_options: {eta: 0.2, variant: R1}
""",
    "a.json": """{"dataset": "omniglot", "ways": 20, "lr": 1e-3, "hidden": [48], "plots": false,
        "metagrad_options": {"eta": 0.2, "variant": "R1"}}""",
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_every_format(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(FILES[name])
    assert read_config(path) == OPTIONS
    assert configure(read_config(path)) == configure(OPTIONS)


def test_flags_override_the_file_and_tables_are_merged() -> None:
    config = configure(OPTIONS, {"ways": 5, "metagrad_options": {"eta": 0.7}})
    assert config.ways == 5
    assert config.lr == 1e-3
    assert config.metagrad_options == {"eta": 0.7, "variant": "R1"}


def test_default_tables_apply_only_to_their_own_names() -> None:
    own = {"method": "imaml"}
    assert configure(own).metagrad_options == {"damping": 10}
    for given in ({"lam": 3.0}, {"damping": 0}):
        found = configure(own, {"metagrad_options": given}, {"metagrad": "implicit"})
        assert found.metagrad_options == {"damping": 10, **given}
    for metagrad in ("exact", "gsl"):
        assert configure(own, {"metagrad": metagrad}).metagrad_options == {}
    assert configure(own, {"dataset": "sine"}).metagrad_options == {}
    assert configure(configure(own).to_dict()) == configure(own)


def test_defaults_depend_on_data_set_and_method() -> None:
    assert configure({}).dataset == "glyphs"
    assert configure({"dataset": "sine"}).backbone == "mlp"
    assert configure({"dataset": "omniglot"}).backbone == "conv4"
    assert configure({"dataset": "mini-imagenet"}).jitter_flip == 0.5
    assert configure({"dataset": "omniglot"}).jitter_flip == 0
    one, many = (configure({"method": m}).inner_steps for m in ("gsl", "reptile"))
    assert many > one


def test_every_data_set_and_method_has_defaults() -> None:
    for dataset, spec in DATASETS.items():
        for method in METHODS:
            config = configure({"dataset": dataset, "method": method})
            assert (config.jitter_shift > 0) <= (spec.kind == "images")
            assert config.steps >= 100
    names = {field.name for field in fields(TrainConfig)}
    for name in ("datasets", "methods"):
        for table in presets._table(name).values():
            assert {*table} - {"extends"} <= names


def test_a_data_set_registered_in_python_has_the_defaults_of_its_preset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = DatasetSpec("regression", generator=SineTasks, preset="sine")
    monkeypatch.setitem(DATASETS.own, "waves", spec)
    config = configure({"dataset": "waves"})
    assert config.regression
    assert config == replace(configure({"dataset": "sine"}), dataset="waves")
    assert configure(config.to_dict()) == config


def test_the_multi_step_loss_anneals_over_a_tenth_of_the_run() -> None:
    config = configure({"method": "maml++", "steps": 500})
    assert config.metagrad_options == {"anneal_steps": 50}
    assert configure(config.to_dict(), {"steps": 900}).metagrad_options == {"anneal_steps": 50}
    own = {"anneal_steps": 7, "first_order_steps": 2}
    assert configure({"metagrad": "multi-step", "metagrad_options": own}).metagrad_options == own
    assert configure({"method": "maml++", "metagrad": "exact"}).metagrad_options == {}


def test_round_trip_of_a_configuration() -> None:
    config = configure(OPTIONS)
    assert configure(config.to_dict()) == config


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"dataset": "omniglott"}, "Did you mean 'omniglot'"),
        ({"dataset": ["digits"]}, r"dataset must be a text; got \['digits'\]"),
        ({"method": ["gsl"]}, r"method must be a text; got \['gsl'\]"),
        ({"metod": "gsl"}, "unknown option 'metod'. Did you mean 'method'"),
        ({"ways": "five"}, "ways must be an integer; got 'five'"),
        ({"ways": 5.0}, "ways must be an integer"),
        ({"ways": True}, "ways must be an integer"),
        ({"ways": 1}, "at least 2 ways"),
        ({"lr": 0}, "lr must be greater than 0"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"hidden": []}, "one number of filters"),
        ({"hidden": [0]}, "at least 1"),
        ({"hidden": [8, 8]}, "one number of filters"),
        ({"plots": "yes"}, "plots must be true or false"),
        ({"metagrad_options": [1]}, "metagrad_options must be a table"),
        ({"seed": 2**63}, "seed must be less"),
        ({"dataset": "sine", "backbone": "conv4"}, "needs backbone mlp"),
        ({"dataset": "cora", "backbone": "conv4"}, "dataset cora needs backbone gcn; got conv4"),
        (
            {"dataset": "clinc150", "backbone": "mlp"},
            "clinc150 needs backbone text or label-text; got",
        ),
        ({"backbone": "text"}, "dataset glyphs needs backbone conv4 or mlp or resnet12; got text"),
        ({"dataset": "banking77", "hidden": [8, 8]}, r"text takes one width as hidden; got \[8, 8"),
        ({"dataset": "citeseer", "jitter_zoom": 0.1}, "dataset citeseer has none: they must be 0"),
        ({"dataset": "sine", "jitter_shift": 1}, "dataset sine has none"),
        ({"dataset": "clinc150", "jitter_flip": 0.5}, "dataset clinc150 has none"),
        ({"dataset": "sine", "ways": 2}, "needs ways 1; got 2"),
        ({"optimizer": "lion"}, "optimizer must be one of adam, sgd"),
        (
            {"engine": "mpl"},
            "engine must be one of auto, loop, .*, mlp, sequence, compiled; .* Did you mean 'mlp'",
        ),
        ({"backbone": "conv5"}, "backbone must be one of conv4, .*Did you mean 'conv4'"),
    ],
)
def test_errors_are_named(options: dict, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        configure(options)


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("a.ini", "", "expected a .toml, .yaml"),
        ("a.toml", "ways = ", "not valid TOML"),
        ("a.yaml", "ways: [", "not valid YAML"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "[1]", "expected a table"),
        ("a.toml", "way = 3", "unknown option 'way'. Did you mean 'ways'"),
    ],
)
def test_broken_files_are_named(name: str, text: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=part) as caught:
        read_config(path)
    assert name in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        read_config("none.toml")


def test_options_cannot_change_afterwards() -> None:
    config = configure({})
    with pytest.raises(AttributeError):
        config.ways = 3  # type: ignore[misc]
    assert isinstance(config, TrainConfig)
