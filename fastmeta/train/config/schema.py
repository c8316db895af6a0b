"""All options of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, cast, get_args, get_type_hints

from fastmeta.data import DATASETS, NODES, TEXTS
from fastmeta.engines import ENGINES, EngineName
from fastmeta.functional import Head
from fastmeta.learners import NonFinite
from fastmeta.learners.methods import WORDS as LEARNER_WORDS
from fastmeta.models import Downsample
from fastmeta.registry import Registry
from fastmeta.train.config.fields import checked, did_you_mean, option
from fastmeta.train.config.presets import defaults_for
from fastmeta.train.errors import ConfigError

SINE = "sine"
WORDS: dict[str, Registry[Any]] = {
    "dataset": Registry("dataset", dict.fromkeys((*DATASETS, SINE))),
    **LEARNER_WORDS,
}
TABLES = ("data_options", "adaptation_options", "metagrad_options", "aggregation_options")

_ONE_WIDTH = {"conv4": "number of filters", "text": "width"}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All options of a training run, checked.

    Make one with :func:`configure`, which knows the defaults of data sets and methods: fields
    without a default here have one there. ``help`` of each field is in its metadata.

    Raises:
        ConfigError: if an option has the wrong type or value, or does not fit the others.
    """

    dataset: str = option("data set", default="digits", choices=WORDS["dataset"])
    data_root: str | None = option(
        "folder of the data sets; by default the one FASTMETA_DATA names", default=None
    )
    data_options: Mapping[str, Any] = option("options of the data set's loader", default={})

    method: str = option("meta-learning method", default="gsl", choices=WORDS["method"])
    adaptation: str = option("room 1, the inner loop", choices=WORDS["adaptation"])
    metagrad: str = option("room 2, the meta-gradient of a task", choices=WORDS["metagrad"])
    aggregation: str = option("room 3, the weights of the tasks", choices=WORDS["aggregation"])
    adaptation_options: Mapping[str, Any] = option("options of room 1", default={})
    metagrad_options: Mapping[str, Any] = option("options of room 2", default={})
    aggregation_options: Mapping[str, Any] = option("options of room 3", default={})
    co_learner: bool = option("train with a co-learner, as method cml does", default=False)
    gamma: float = option("weight of the co-learner's loss", default=1.0, least=0)
    co_test: str = option(
        "whose outputs the test scores: of the main head, or the co-learner's",
        default="main",
        choices=get_args(Head),
    )
    ways: int = option("classes a task (1 for sine)", least=1)
    shots: int = option("support examples a class", least=1)
    queries: int = option("query examples a class in training", least=1)
    eval_queries: int = option("query examples a class in validation and test", least=1)
    meta_batch: int = option("tasks a meta-step", least=1)
    jitter_shift: float = option("largest random shift of training images, in pixels", least=0)
    jitter_degrees: float = option("largest random turn of training images", least=0)
    jitter_zoom: float = option("largest random zoom of training images, as a logarithm", least=0)
    jitter_flip: float = option("probability that a training image is mirrored", least=0)

    inner_lr: float = option("learning rate of the inner loop", above=0)
    inner_steps: int = option("inner steps in training", least=0)
    eval_inner_steps: int = option("inner steps in validation and test", least=0)
    untrained: bool = option("test the network without meta-training, too", default=True)
    untrained_inner_steps: int = option(
        "inner steps of a second test of the network without meta-training; 0 for none",
        least=0,
    )

    steps: int = option("meta-steps", least=1)
    lr: float = option("learning rate of the outer optimizer", above=0)
    optimizer: str = option("outer optimizer", default="adam", choices=("adam", "sgd"))
    lr_schedule: str = option(
        "of the outer learning rate, down to 0 over all meta-steps",
        default="none",
        choices=("none", "cosine", "linear"),
    )

    backbone: str = option("network", choices=("conv4", "mlp", "resnet12", "text", "gcn"))
    hidden: tuple[int, ...] = option(
        "filters of conv4, of the four blocks of resnet12 (one number doubles from block to "
        "block), width of text, or widths of the layers of mlp or gcn",
        least=1,
    )
    downsample: str = option("downsampling of conv4", default="pool", choices=get_args(Downsample))
    batch_norm_stats: bool = option(
        "evaluate images with running statistics, not those of the batch", default=False
    )
    per_step_batch_norm: bool = option("a BatchNorm of conv4 for each inner step", default=False)

    engine: str = option("what runs the tasks in training", default="auto", choices=ENGINES)
    non_finite: str = option(
        "a training task whose loss or gradient is NaN or infinite: keep it, skip and count it, or "
        "raise an error",
        default="skip",
        choices=get_args(NonFinite),
    )
    seed: int = option("of initial weights and training tasks", default=0, least=0)
    device: str = option("auto, cpu, cuda or cuda:N", default="auto")
    threads: int | None = option("CPU threads; by default torch's choice", default=None, least=1)
    out: str | None = option("run folder; by default a new one in runs/", default=None)
    val_every: int = option("meta-steps between validations", default=250, least=1)
    val_tasks: int = option("validation tasks, always the same", default=100, least=2)
    test_tasks: int = option("test tasks, always the same", default=600, least=2)
    log: str = option("log of the curves", default="csv", choices=("csv", "tensorboard", "both"))
    log_every: int = option("meta-steps between log rows", default=25, least=1)
    checkpoint_every: int = option("meta-steps between checkpoints", default=250, least=1)
    keep: int = option("checkpoints to keep, besides the best", default=2, least=1)
    plots: bool = option("draw curves and a test episode at the end", default=True)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in fields(self):
            value = checked(item.name, hints[item.name], item.metadata, getattr(self, item.name))
            object.__setattr__(self, item.name, value)
        if self.seed >= 2**63:
            raise ConfigError(f"seed must be less than 2**63; got {self.seed}.")
        self._check_fit()
        if self.metagrad == "multi-step":  # a tenth, as in the authors' runs on Omniglot
            table = {"anneal_steps": self.steps // 10, **self.metagrad_options}
            object.__setattr__(self, "metagrad_options", table)

    def _check_fit(self) -> None:
        backbones = _backbones(self.dataset)
        if self.backbone not in backbones:
            raise ConfigError(
                f"dataset {self.dataset} needs backbone {' or '.join(backbones)}; "
                f"got {self.backbone}."
            )
        if self.dataset == SINE and self.ways != 1:
            raise ConfigError(
                f"dataset sine is regression of one number: it needs ways 1; got {self.ways}."
            )
        if self.dataset != SINE and self.ways < 2:
            raise ConfigError(f"classification needs at least 2 ways; got {self.ways}.")
        if self.backbone in _ONE_WIDTH and len(self.hidden) != 1:
            raise ConfigError(
                f"backbone {self.backbone} takes one {_ONE_WIDTH[self.backbone]} as hidden; "
                f"got {list(self.hidden)}."
            )
        jitters = (self.jitter_shift, self.jitter_degrees, self.jitter_zoom, self.jitter_flip)
        if any(jitters) and (self.dataset == SINE or self.dataset in (*TEXTS, *NODES)):
            raise ConfigError(
                "jitter_shift, jitter_degrees, jitter_zoom and jitter_flip move images, and "
                f"dataset {self.dataset} has none: they must be 0; got {jitters}."
            )
        if self.backbone == "resnet12" and len(self.hidden) not in (1, 4):
            raise ConfigError(
                f"backbone resnet12 takes one or four numbers as hidden; got {list(self.hidden)}."
            )
        if self.co_test != "main" and not self.co_learner:
            raise ConfigError(f"co_test {self.co_test!r} needs a co-learner, as method cml has.")

    @property
    def regression(self) -> bool:
        """Whether tasks are regression, not classification."""
        return self.dataset == SINE

    @property
    def checked_engine(self) -> EngineName:
        """``engine``, which is checked."""
        return cast(EngineName, self.engine)

    @property
    def checked_non_finite(self) -> NonFinite:
        """``non_finite``, which is checked."""
        return cast(NonFinite, self.non_finite)

    @property
    def test_head(self) -> Head:
        """``co_test``, which is checked."""
        return cast(Head, self.co_test)

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values, for JSON or a checkpoint."""
        return {**asdict(self), "hidden": list(self.hidden)}


def _backbones(dataset: str) -> tuple[str, ...]:
    """The networks that take the inputs of a data set."""
    if dataset in TEXTS:
        return ("text",)
    if dataset in NODES:
        return ("gcn",)
    if dataset == SINE:
        return ("mlp",)
    images = ("conv4", "mlp", "resnet12")
    return images if dataset in DATASETS else (*images, "text", "gcn")  # of a plug-in: anything


def option_names() -> list[str]:
    """The names of all options."""
    return [item.name for item in fields(TrainConfig)]


def check_names(options: Mapping[str, Any], where: str) -> None:
    """Makes sure that all keys are options.

    Raises:
        ConfigError: naming the first that is not, and the nearest option.
    """
    known = option_names()
    for name in options:
        if name not in known:
            near = did_you_mean(name, known) or f" Known are {', '.join(known)}."
            raise ConfigError(f"{where}: unknown option {name!r}.{near}")


def configure(*sources: Mapping[str, Any]) -> TrainConfig:
    """The configuration of several sources of options, such as a file and flags.

    Later sources win; the tables of options are merged. What none names has the default for its
    data set and method (`fastmeta.train.config.presets`), whose tables are for its own names alone.

    Raises:
        ConfigError: if an option is unknown, has the wrong type or value, or does not fit others.
    """
    for source in sources:
        check_names(source, "configuration")
    given = _merged(sources)
    whole = {item.name: item.default for item in fields(TrainConfig)}
    dataset, method = (given.get(name, whole[name]) for name in ("dataset", "method"))
    defaults = defaults_for(dataset, method)
    own = {}
    for name in TABLES:
        table, room = defaults.pop(name, None), name.removesuffix("_options")
        if table and given.get(room, defaults[room]) == defaults[room]:
            own[name] = table
    return TrainConfig(**{**defaults, **_merged([own, given])})


def _merged(sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for source in sources:
        for name, value in source.items():
            merge = name in TABLES and isinstance(value, Mapping)
            merged[name] = {**merged.get(name, {}), **value} if merge else value
    return merged
