"""Room 1: inner adaptation, from the initialisation to a task's fast weights."""

from collections.abc import Callable
from functools import partial

from fastmeta.adaptation.adam import Adam
from fastmeta.adaptation.base import Adaptation
from fastmeta.adaptation.inner_loop import Adapted, LossFn, run_inner_loop
from fastmeta.adaptation.layer_pattern import LayerPattern, by_word
from fastmeta.adaptation.meta_sgd import MetaSGD
from fastmeta.adaptation.proximal import ProximalSGD
from fastmeta.adaptation.sgd import SGD
from fastmeta.adaptation.tape import Cotangents, Grads, InnerStep, Pullback, Tape

ADAPTATIONS: dict[str, Callable[..., Adaptation]] = {
    "adam": Adam,
    "lslr": partial(MetaSGD, per="tensor", per_step=True),
    "meta-sgd": MetaSGD,
    "proximal": ProximalSGD,
    "sgd": SGD,
}
"""Room 1 by word; each takes ``lr`` and ``steps``."""
ADAPTATIONS |= by_word(ADAPTATIONS)

__all__ = [
    "ADAPTATIONS",
    "SGD",
    "Adam",
    "Adaptation",
    "Adapted",
    "Cotangents",
    "Grads",
    "InnerStep",
    "LayerPattern",
    "LossFn",
    "MetaSGD",
    "ProximalSGD",
    "Pullback",
    "Tape",
    "run_inner_loop",
]
