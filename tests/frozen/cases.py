"""All cases by name; a name stands for the same computation as long as no default changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from frozen.package import METHODS
from frozen.problems import INNER_STEPS, NETWORKS, Trace
from frozen.runs import learner, multitask, program, user_loop

ENGINES = ("loop", "batched", "mlp")
ADAPTATIONS: dict[str, dict[str, Any]] = {
    "adam": {"eps": 0.01},  # by default chaotic where gradients are rounding errors
    **{name: {} for name in ("anil", "boil", "lslr", "meta-sgd", "proximal", "sgd")},
    "lambda": {"pattern": "head/full"},
}
METAGRADS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("central-difference", "exact", "first-order", "gsl", "gsl R1")},
    "implicit": {},
    "multi-step": {"anneal_steps": 2, "first_order_steps": 1},
    **{name: {} for name in ("recursion", "reptile")},
}
AGGREGATIONS = ("agreement", "aligned-mtl", "cagrad", "gsl", "imtl-g", "mean", "mgda", "nash-mtl")
AGGREGATIONS += ("pcgrad", "upgrad")
R1 = {"variant": "R1"}
GSL_RULES: list[dict[str, Any]] = [  # of the meta-gradient and of the optimizer
    {"variant": "R0"},
    *({"variant": variant, "eta": eta} for variant in ("R1", "R2") for eta in (0.0, 0.7)),
    *({**R1, "magnitude": name} for name in ("none", "norm-match")),
    *({**R1, "magnitude": "ratio", "ratio": ratio} for ratio in (0.3, 2.0)),
    {**R1, "magnitude": "clip", "ratio": 0.5},
    *({**R1, "magnitude": name, "scope": "layer", "ratio": 0.3} for name in ("ratio", "clip")),
    {**R1, "scope": "layer", "eta": -0.5},
    {**R1, "lam_c": 0.3, "lam_2": 0.2},
    {"variant": "R2", "lam_2": 0.2, "eta": 2.0},
    *({**R1, "schedule": name} for name in ("warmup:3", "linear:3", "cosine:3", "step:1:0.5")),
    *({**R1, "schedule": name} for name in ("late:1", "until:1")),
]
GSL_OTHERS: list[dict[str, Any]] = [  # of the meta-gradient alone
    {"variant": "R2p", "eta": 50.0},
    {"variant": "R2p", "eta": 50.0, "lam_2": 0.2},
    {**R1, "magnitude": "inner-lr"},
    {"variant": "R4", "every": 2, "tasks": 2},
    {"variant": "R4", "every": 2, "tasks": 2, "secant": False},
    {"variant": "R5"},
    {"variant": "R6"},
    {"lam_c": 0.3, "lam_2": 0.2},  # and below, of the similarity loss
    {"eta": -0.5, "layers": "all"},
    {"schedule": "late:1"},
]
METAGRAD_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("reptile", {"use_query": False}),
    ("implicit", {"cg_steps": 2, "lam": 1.0, "damping": 0.5}),
    ("central-difference", {"radius": 0.01}),
    *(("recursion", {"graphs": graphs}) for graphs in (0, 2)),
]

METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "cml": {"heads": ("main", "co-learner", "co-learner-alone")},
    "lambda": {"adaptation_options": ADAPTATIONS["lambda"]},
    "maml++": {"metagrad_options": METAGRADS["multi-step"]},
}
STATISTICS = {"batch_norm_stats": True}


def learner_cases() -> Iterator[tuple[str, Iterable[str], Iterable[str], dict[str, Any]]]:
    """Name, networks, engines and options of the learners' cases."""
    without_warps = [name for name in METHODS if "warp" not in name]  # as the networks
    for name in (*without_warps, "gsl R1"):
        options = METHOD_OPTIONS.get(name, {})
        yield f"method/{name}", NETWORKS, ENGINES, {**named("method", name), **options}
    for name, aggregation in product(METAGRADS, AGGREGATIONS):
        options = {"metagrad_options": METAGRADS[name], **named("metagrad", name)}
        yield f"{name}/{aggregation}", ["mlp"], ENGINES, {"aggregation": aggregation, **options}
    for name, metagrad in product(ADAPTATIONS, ("exact", "first-order", "recursion")):
        options = {"adaptation": name, "adaptation_options": ADAPTATIONS[name]}
        yield f"adaptation/{name}/{metagrad}", NETWORKS, ENGINES, {"metagrad": metagrad, **options}
    for options in ({"momentum": 0.8}, {"of": "adam"}, {"per": "tensor"}):
        name = {"momentum": "sgd", "of": "anil", "per": "meta-sgd"}[next(iter(options))]
        more = {"adaptation": name, "adaptation_options": options}
        yield f"adaptation/{name} {text(options)}", ["mlp"], ENGINES, more
    for options in (*GSL_RULES, *GSL_OTHERS):
        more = {"method": "gsl", "metagrad_options": options}
        yield f"gsl/{text(options)}", NETWORKS, ENGINES, more
    for options in ({"tau": 0.5}, {"lam_2": 0.2}):
        more = {"method": "fomaml", "aggregation": "gsl", "aggregation_options": options}
        yield f"gsl/R3 {text(options)}", NETWORKS, ["loop"], more
    for name, options in METAGRAD_OPTIONS:
        more = {"metagrad": name, "metagrad_options": options}
        yield f"metagrad/{name} {text(options)}", ["mlp", "conv"], ["loop"], more
    for name, steps in product(("maml", "fomaml", "gsl", "gsl R1"), (1, 5)):
        options = {**named("method", name), "inner_steps": steps}
        yield f"inner steps {steps}/{name}", NETWORKS, ENGINES, options
    for name in ("maml", "fomaml", "gsl", "gsl R1", "reptile"):
        bad = {**named("method", name), "bad": 2, "non_finite": "skip"}
        yield f"skip/{name}", ["mlp", "transformer"], ENGINES, bad
        yield f"skip/{name} statistics", ["conv"], ENGINES, {**bad, "of": STATISTICS}
    for name in ("fomaml", "gsl", "gsl R1", "reptile"):
        options = {**named("method", name), "checkpoint": True}
        yield f"checkpoint/{name}", NETWORKS, ["loop"], options
    for name in ("maml", "fomaml"):
        of: dict[str, Any] = {"method": name, "autocast": torch.bfloat16}
        yield f"bfloat16/{name}", ["conv", "transformer"], ["loop"], of
        yield f"unfused/{name}", ["conv"], ["loop", "batched"], {"method": name, "fuse": False}
        of = {"method": name, "of": {"downsample": "stride", **STATISTICS}}
        yield f"strided/{name}", ["conv"], ["loop", "batched"], of
        adam = {"method": name, "optimizer": partial(torch.optim.Adam, lr=0.01)}
        yield f"adam/{name}", ["mlp"], ENGINES, adam
    for name in ("maml", "maml++", "fomaml"):
        of = {"method": name, "of": {"batch_norm_steps": INNER_STEPS, **STATISTICS}}
        yield f"per-step/{name}", ["conv"], ["loop", "batched"], of
    for name in METAGRADS:
        if name not in ("first-order", "reptile"):
            options = {**named("metagrad", name), "of": {"dropout": 0.2}}
            yield f"dropout/{name}", ["transformer"], ["loop"], options
    for name in ("fomaml", "gsl", "gsl R1"):
        yield f"co-learner/{name}", NETWORKS, ["loop"], {**named("method", name), "gamma": 0.2}


def all_cases() -> dict[str, Callable[[], Trace]]:
    """What to call for each case."""
    found: dict[str, Callable[[], Trace]] = {}
    for name, networks, engines, options in learner_cases():
        for on, engine in product(networks, engines):
            run = partial(learner, **{"method": "maml", **options}, on=on, engine=engine)
            found[f"{name}/{on}/{engine}"] = run
    for options in (*GSL_RULES, *({"variant": "R3", "tau": tau} for tau in (0.5, 1.0))):
        found[f"optimizer/{text(options)}"] = partial(user_loop, **options)
    routes = ("support", "record", "adapted", "inner gradients")
    for route, base in product(routes, ("SGD", "Adam")):
        rule = {} if route == "inner gradients" else R1
        run = partial(user_loop, route, getattr(torch.optim, base), **rule)
        found[f"optimizer/{route}/{base}"] = run
    for name in AGGREGATIONS:
        found[f"aggregate/{name}"] = partial(multitask, name)
    for name in ("gsl", "gsl R1", "maml++", "imaml"):
        flags = ["--dataset", "digits", *flags_of(name), "--hidden", "8"]
        found[f"train/digits/{name}"] = partial(program, *flags)
    for name in ("maml", "gradient-agreement", "cml", "gsl", "gsl R1"):
        found[f"train/sine/{name}"] = partial(program, "--dataset", "sine", *flags_of(name))
    return found


def named(kind: str, name: str) -> dict[str, Any]:
    """The options of a method or meta-gradient; "gsl R1" is "gsl" with the variant R1."""
    first, _, variant = name.partition(" ")
    return {kind: first, "metagrad_options": {"variant": variant}} if variant else {kind: first}


def flags_of(method: str) -> list[str]:
    """The same on the command line."""
    first, _, variant = method.partition(" ")
    more = ["--metagrad-option", f"variant={variant}"] if variant else []
    return ["--method", first, *more]


def text(options: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items())
