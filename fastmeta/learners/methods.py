"""The methods by name, each a combination of the three components."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from torch import nn

from fastmeta import metagrad as meta
from fastmeta._options import construct
from fastmeta.adaptation import ADAPTATIONS
from fastmeta.aggregation import AGGREGATIONS
from fastmeta.engines import Loss
from fastmeta.learners.learner import MetaLearner
from fastmeta.learners.presets import LearnerOptions
from fastmeta.registry import Registry

if TYPE_CHECKING:
    from typing_extensions import Unpack

Component = TypeVar("Component")


class MethodSpec(NamedTuple):
    """A method: the name of each component, in its registry.

    Attributes:
        adaptation: of [`fastmeta.adaptation.ADAPTATIONS`][].
        metagrad: of [`fastmeta.metagrad.METAGRADS`][].
        aggregation: of [`fastmeta.aggregation.AGGREGATIONS`][].
    """

    adaptation: str = "sgd"
    metagrad: str = "exact"
    aggregation: str = "mean"


MAMF = "mamf"
METHODS: Registry[MethodSpec] = Registry(
    "method",
    {
        "alfa": MethodSpec(adaptation="alfa"),
        "amfs": MethodSpec(adaptation="kernel-head", aggregation="gsl"),
        "anil": MethodSpec(adaptation="anil"),
        "b-small": MethodSpec(),
        "boil": MethodSpec(adaptation="boil"),
        "cml": MethodSpec(),
        "fomaml": MethodSpec(metagrad="first-order"),
        "gradient-agreement": MethodSpec(aggregation="agreement"),
        "gradient-agreement-reptile": MethodSpec(metagrad="reptile", aggregation="agreement"),
        "gradncp": MethodSpec(adaptation="pruned-support", metagrad="bootstrapped"),
        "gsl": MethodSpec(metagrad="gsl"),
        "imaml": MethodSpec(adaptation="proximal", metagrad="implicit"),
        "lambda": MethodSpec(adaptation="lambda"),
        "leap": MethodSpec(metagrad="leap"),
        "local-moml": MethodSpec(metagrad="local-moml"),
        MAMF: MethodSpec(adaptation="adam", metagrad="first-order"),
        "maml": MethodSpec(),
        "maml++": MethodSpec(adaptation="lslr", metagrad="multi-step"),
        "meta-rkhs-i": MethodSpec(metagrad="joint-first-order"),
        "meta-rkhs-ii": MethodSpec(adaptation="ntk"),
        "meta-sgd": MethodSpec(adaptation="meta-sgd"),
        "mgaug": MethodSpec(metagrad="augmented"),
        "moml": MethodSpec(metagrad="moml"),
        "reptile": MethodSpec(metagrad="reptile"),
        "robust-maml": MethodSpec(adaptation="scalar-rate"),
        "warp-leap": MethodSpec(adaptation="warpgrad", metagrad="warpgrad"),
        "warpgrad": MethodSpec(adaptation="warpgrad"),
    },
    expected=MethodSpec,
)
"""Methods by name."""


def build(
    method: str,
    module: nn.Module,
    loss: Loss,
    *,
    inner_lr: float,
    inner_steps: int | None = None,
    adaptation: str | None = None,
    metagrad: str | None = None,
    aggregation: str | None = None,
    adaptation_options: Mapping[str, Any] | None = None,
    metagrad_options: Mapping[str, Any] | None = None,
    aggregation_options: Mapping[str, Any] | None = None,
    **options: Unpack[LearnerOptions],
) -> MetaLearner:
    """Builds a learner from the names of its method and components.

    Args:
        method: a name in [`METHODS`][fastmeta.learners.METHODS], which decides the three
            components. These and the names below may be those of plug-ins.
        module: the network whose initialisation is learned.
        loss: from outputs and targets to a scalar.
        inner_lr: learning rate of the inner loop.
        inner_steps: inner steps during meta-training; 1 by default, of `"mamf"` always 0.
        adaptation: replaces the method's, a name in [`fastmeta.adaptation.ADAPTATIONS`][].
        metagrad: replaces the method's, a name in [`fastmeta.metagrad.METAGRADS`][].
        aggregation: replaces the method's, a name in [`fastmeta.aggregation.AGGREGATIONS`][].
        adaptation_options: further arguments of the adaptation.
        metagrad_options: arguments of the meta-gradient.
        aggregation_options: arguments of the aggregation.
        **options: see [`MAML`][fastmeta.MAML].

    Raises:
        PluginError: if a name is a plug-in's that cannot be used.
        ValueError: if a name is unknown, a component does not accept the value of an argument, or
            the method is `"cml"` and there is no `co_learner`, `"b-small"` and no `penalty`, or
            `"mamf"` with inner steps.
        TypeError: if a component has no such argument.
    """
    spec = METHODS[method]
    if method == "cml" and options.get("co_learner") is None:
        raise ValueError("method 'cml' is MAML with a co-learner; expected one in co_learner.")
    if method == "b-small" and options.get("penalty") is None:
        raise ValueError(
            "method 'b-small' is MAML with sparse layers and a penalty; expected a network of "
            "fastmeta.models.sparsify, and penalty=fastmeta.models.KLPenalty(...)."
        )
    if inner_steps is None:
        inner_steps = int(method != MAMF)
    elif method == MAMF and inner_steps != 0:
        raise ValueError(
            f"method 'mamf' has no inner loop in training: expected inner_steps=0, got "
            f"{inner_steps}. predict(batch, steps=...) fine-tunes at test; method 'fomaml' has one."
        )
    return MetaLearner(
        module,
        loss,
        adaptation=make_component(
            ADAPTATIONS,
            adaptation or spec.adaptation,
            adaptation_options,
            lr=inner_lr,
            steps=inner_steps,
        ),
        metagrad=make_component(meta.METAGRADS, metagrad or spec.metagrad, metagrad_options),
        aggregation=make_component(
            AGGREGATIONS, aggregation or spec.aggregation, aggregation_options
        ),
        **options,
    )


def make_component(
    registry: Registry[Callable[..., Component]],
    name: str,
    options: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> Component:
    """An adaptation, meta-gradient or aggregation by name.

    Args:
        registry: of the kind of component.
        name: in the registry.
        options: of the component.
        **arguments: `lr` and `steps` of an adaptation.

    Raises:
        PluginError: if the name is a plug-in's that cannot be used.
        ValueError: if the name is unknown, or the value of an option is invalid.
        TypeError: if there is no such option.
    """
    label = f"{registry.kind} {name!r}"
    component: Component = construct(label, registry[name], options or {}, **arguments)
    return component
