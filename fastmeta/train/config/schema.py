"""All options of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_type_hints

from fastmeta._checks import did_you_mean
from fastmeta.adaptation import ADAPTATIONS
from fastmeta.aggregation import AGGREGATIONS
from fastmeta.data import DATASETS, DatasetSpec
from fastmeta.data.prioritized import Rank
from fastmeta.engines import EngineName
from fastmeta.functional import Head
from fastmeta.learners import METHODS, NonFinite
from fastmeta.metagrad import METAGRADS
from fastmeta.models import BACKBONES, Downsample
from fastmeta.train.config.fields import checked, option
from fastmeta.train.config.presets import defaults_for
from fastmeta.train.errors import ConfigError

TABLES = (
    *("data_options", "train_data_options"),
    *("adaptation_options", "metagrad_options", "aggregation_options"),
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All options of a training run, checked.

    Make one with [`configure`][fastmeta.train.configure], which adds the defaults that depend on
    dataset and method, of fields without a default here. The `help` of each field is in its
    metadata.

    Raises:
        ConfigError: if an option has the wrong type or value, or does not fit the others.
    """

    dataset: str = option("dataset", default="glyphs", choices=DATASETS)
    data_root: str | None = option(
        "folder of the datasets; by default the one FASTMETA_DATA names", default=None
    )
    data_options: Mapping[str, Any] = option("options of the dataset's loader", default={})
    train_data_options: Mapping[str, Any] = option(
        "further options of the loader for training tasks alone", default={}
    )

    method: str = option("meta-learning method", default="gsl", choices=METHODS)
    adaptation: str = option("inner-loop adaptation", choices=ADAPTATIONS)
    metagrad: str = option("meta-gradient of a task", choices=METAGRADS)
    aggregation: str = option("task aggregation", choices=AGGREGATIONS)
    adaptation_options: Mapping[str, Any] = option("options of the adaptation", default={})
    metagrad_options: Mapping[str, Any] = option("options of the meta-gradient", default={})
    aggregation_options: Mapping[str, Any] = option("options of the aggregation", default={})
    co_learner: bool = option("train with a co-learner, as method cml does", default=False)
    gamma: float = option("weight of the co-learner's loss", default=1.0, minimum=0)
    co_test: Head = option("head that is evaluated on test tasks", default="main")
    ways: int = option("classes per task (1 for regression)", minimum=1)
    train_ways: int | None = option(
        "classes per task in training, for networks that read label texts; by default ways",
        default=None,
        minimum=2,
    )
    steps_per_task: int = option(
        "meta-steps in a row whose tasks have the same classes", default=1, minimum=1
    )
    shots: int = option("support examples per class", minimum=1)
    eval_shots: int | None = option(
        "support examples per class in validation and test; by default as in training",
        default=None,
        minimum=1,
    )
    queries: int = option("query examples per class in training", minimum=1)
    eval_queries: int = option("query examples per class in validation and test", minimum=1)
    meta_batch: int = option("tasks per meta-step", minimum=1)
    task_reuse: float = option(
        "share of a meta-batch that are earlier tasks, as in robust-maml", default=0.0, minimum=0
    )
    task_reuse_rank: Rank = option(
        "which earlier tasks, by the rank of their losses", default="medium"
    )
    jitter_shift: float = option("largest random shift of training images, in pixels", minimum=0)
    jitter_degrees: float = option(
        "largest random rotation of training images, in degrees", minimum=0
    )
    jitter_zoom: float = option("largest random zoom of training images, as a logarithm", minimum=0)
    jitter_flip: float = option("probability that a training image is flipped", minimum=0)

    inner_lr: float = option("learning rate of the inner loop", above=0)
    inner_steps: int = option("inner steps in training", minimum=0)
    eval_inner_steps: int = option("inner steps in validation and test", minimum=0)
    untrained: bool = option("also test the network without meta-training", default=True)
    untrained_inner_steps: int = option(
        "inner steps of a second test of the network without meta-training; 0 for none",
        minimum=0,
    )

    steps: int = option("meta-steps", minimum=1)
    lr: float = option("learning rate of the outer optimizer", above=0)
    optimizer: Literal["adam", "sgd"] = option("outer optimizer", default="adam")
    clip_norm: float = option(
        "largest norm of the meta-gradient, which is clipped; 0: as large as it is",
        default=0.0,
        minimum=0,
    )
    lr_schedule: Literal["none", "cosine", "linear"] = option(
        "decay of the outer learning rate to 0 over all meta-steps", default="none"
    )

    backbone: str = option("network", choices=BACKBONES)
    hidden: tuple[int, ...] = option(
        "filters of conv4, of the four blocks of resnet12 (one number doubles from block to "
        "block), width of text, or widths of the layers of mlp or gcn",
        minimum=1,
    )
    downsample: Downsample = option("downsampling of conv4", default="pool")
    batch_norm_stats: bool = option(
        "evaluate images with running statistics, not those of the batch", default=False
    )
    per_step_batch_norm: bool = option("a BatchNorm of conv4 per inner step", default=False)
    warp: bool = option("warp layers in conv4 or mlp, as method warpgrad needs", default=False)
    sparse: bool = option(
        "sparse variational layers, as method b-small has: in evaluation, weights of low "
        "signal-to-noise ratio are 0",
        default=False,
    )
    log_sigma: float = option(
        "start of the logarithms of standard deviations in sparse layers", default=-8.0
    )
    kl_weight: float = option(
        "weight of the KL divergence of sparse layers in the support and query losses",
        default=0.0,
        minimum=0,
    )

    engine: EngineName = option("engine that runs the training tasks", default="auto")
    non_finite: NonFinite = option(
        "a training task whose loss or gradient is NaN or infinite: keep it, skip and count it, or "
        "raise an error",
        default="skip",
    )
    seed: int = option(
        "seed of initial weights, training tasks and torch's generator", default=0, minimum=0
    )
    device: str = option("auto, cpu, cuda or cuda:N", default="auto")
    threads: int | None = option("CPU threads; by default torch's choice", default=None, minimum=1)
    out: str | None = option("run folder; by default a new one in runs/", default=None)
    val_every: int = option("meta-steps between validations", default=250, minimum=1)
    val_tasks: int = option("validation tasks, always the same", default=100, minimum=2)
    test_tasks: int = option("test tasks, always the same", default=600, minimum=2)
    log: Literal["csv", "tensorboard", "both"] = option("log of the curves", default="csv")
    log_every: int = option("meta-steps between log rows", default=25, minimum=1)
    checkpoint_every: int = option("meta-steps between checkpoints", default=250, minimum=1)
    keep: int = option("checkpoints to keep, apart from the best", default=2, minimum=1)
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
        kind, backbone = self.dataset_spec.kind, BACKBONES[self.backbone]
        if kind is not None and kind not in backbone.kinds:
            fitting = [name for name, spec in BACKBONES.items() if kind in spec.kinds]
            raise ConfigError(
                f"dataset {self.dataset} needs backbone {' or '.join(fitting)}; "
                f"got {self.backbone}."
            )
        if self.regression and self.ways != 1:
            raise ConfigError(
                f"dataset {self.dataset} is a regression, without classes: it needs ways 1; "
                f"got {self.ways}."
            )
        if not self.regression and self.ways < 2:
            raise ConfigError(f"classification needs at least 2 ways; got {self.ways}.")
        counts = backbone.hidden_counts
        if counts is not None and len(self.hidden) not in counts:
            raise ConfigError(
                f"backbone {self.backbone} takes {backbone.hidden_label} as hidden; "
                f"got {list(self.hidden)}."
            )
        if self.warp and not backbone.warps:
            able = " and ".join(name for name, spec in BACKBONES.items() if spec.warps)
            raise ConfigError(
                f"warp layers are for the backbones {able}; got {self.backbone}. In your own "
                "module, make them with fastmeta.models.warp_linear or warp_conv."
            )
        if self.train_ways is not None and not backbone.label_texts:
            fitting = [name for name, spec in BACKBONES.items() if spec.label_texts]
            raise ConfigError(
                "train_ways needs a network for any number of classes, backbone "
                f"{' or '.join(fitting)}; got {self.backbone}."
            )
        jitters = (self.jitter_shift, self.jitter_degrees, self.jitter_zoom, self.jitter_flip)
        if any(jitters) and kind not in (None, "images"):
            raise ConfigError(
                "jitter_shift, jitter_degrees, jitter_zoom and jitter_flip transform images, and "
                f"dataset {self.dataset} has none: they must be 0; got {jitters}."
            )
        if self.task_reuse >= 1:
            raise ConfigError(f"task_reuse must be below 1; got {self.task_reuse}.")
        if self.kl_weight and not self.sparse:
            raise ConfigError(
                f"kl_weight {self.kl_weight} is for sparse layers: add sparse, or use method "
                "b-small."
            )
        if self.co_test != "main" and not self.co_learner:
            raise ConfigError(f"co_test {self.co_test!r} needs a co-learner, as method cml has.")

    @property
    def dataset_spec(self) -> DatasetSpec:
        """What is known about the dataset."""
        return DATASETS[self.dataset]

    @property
    def regression(self) -> bool:
        """Whether tasks are regression, not classification."""
        return self.dataset_spec.kind in ("regression", "signals")

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values, for JSON or a checkpoint."""
        return {**asdict(self), "hidden": list(self.hidden)}


def option_names() -> list[str]:
    """The names of all options."""
    return [item.name for item in fields(TrainConfig)]


def check_names(options: Mapping[str, Any], where: str) -> None:
    """Checks that all keys are options.

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

    Later sources win; tables of options are merged. Options in none of them have the defaults of
    the dataset and the method (`fastmeta.train.config.presets`). A default table of options is
    dropped if the component that it belongs to is another.

    Raises:
        ConfigError: if an option is unknown, has the wrong type or value, or does not fit others.
    """
    for source in sources:
        check_names(source, "configuration")
    given = _merged(sources)
    fallback = {item.name: item.default for item in fields(TrainConfig)}
    dataset, method = (given.get(name, fallback[name]) for name in ("dataset", "method"))
    defaults = defaults_for(dataset, method)
    own = {}
    for name in TABLES:
        table, component = defaults.pop(name, None), name.removesuffix("_options")
        if table and given.get(component, defaults[component]) == defaults[component]:
            own[name] = table
    return TrainConfig(**{**defaults, **_merged([own, given])})


def _merged(sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for source in sources:
        for name, value in source.items():
            merge = name in TABLES and isinstance(value, Mapping)
            merged[name] = {**merged.get(name, {}), **value} if merge else value
    return merged
