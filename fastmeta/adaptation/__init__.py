"""Inner adaptation: from the initialisation to the fast weights of a task."""

from collections.abc import Callable

from fastmeta.adaptation.adam import Adam, AdamW
from fastmeta.adaptation.alfa import ALFA
from fastmeta.adaptation.base import Adaptation, SupportLoss
from fastmeta.adaptation.closed_form import ClosedForm, Fit, fit_task, without_loop
from fastmeta.adaptation.groups import Groups
from fastmeta.adaptation.heads import KernelHead, RidgeHead
from fastmeta.adaptation.inner_loop import Adapted, LossFn, run_inner_loop
from fastmeta.adaptation.layer_pattern import LayerPattern, pattern_adaptations
from fastmeta.adaptation.meta_sgd import MetaSGD, lslr
from fastmeta.adaptation.muon import Muon
from fastmeta.adaptation.ntk import NTK
from fastmeta.adaptation.proximal import ProximalSGD
from fastmeta.adaptation.pruned_support import PrunedSupport, pruned_support_by_name
from fastmeta.adaptation.rmsprop import RMSprop
from fastmeta.adaptation.scalar_rate import ScalarRate
from fastmeta.adaptation.sgd import SGD
from fastmeta.adaptation.tape import (
    Cotangents,
    Grads,
    InnerStep,
    Pullback,
    Tape,
    ThroughGrads,
    reverse_sweep,
)
from fastmeta.adaptation.wrappers import Clipped, Scheduled
from fastmeta.registry import Registry

_ALL_LAYERS: dict[str, Callable[..., Adaptation]] = {
    "adam": Adam,
    "adamw": AdamW,
    "alfa": ALFA,
    "lslr": lslr,
    "meta-sgd": MetaSGD,
    "proximal": ProximalSGD,
    "rmsprop": RMSprop,
    "scalar-rate": ScalarRate,
    "sgd": SGD,
}

ADAPTATIONS: Registry[Callable[..., Adaptation]] = Registry(
    "adaptation",
    {
        **_ALL_LAYERS,
        **pattern_adaptations(_ALL_LAYERS),
        "kernel-head": without_loop(KernelHead),
        "ntk": without_loop(NTK),
        "pruned-support": pruned_support_by_name(_ALL_LAYERS),
        "ridge-head": without_loop(RidgeHead),
    },
)
"""Adaptations by name; each takes `lr`, `steps` and options of its own."""

__all__ = [
    "ADAPTATIONS",
    "ALFA",
    "NTK",
    "SGD",
    "Adam",
    "AdamW",
    "Adaptation",
    "Adapted",
    "Clipped",
    "ClosedForm",
    "Cotangents",
    "Fit",
    "Grads",
    "Groups",
    "InnerStep",
    "KernelHead",
    "LayerPattern",
    "LossFn",
    "MetaSGD",
    "Muon",
    "ProximalSGD",
    "PrunedSupport",
    "Pullback",
    "RMSprop",
    "RidgeHead",
    "ScalarRate",
    "Scheduled",
    "SupportLoss",
    "Tape",
    "ThroughGrads",
    "fit_task",
    "reverse_sweep",
    "run_inner_loop",
]
