"""Room 1: inner adaptation, from the initialisation to a task's fast weights."""

from fastmeta.adaptation.adam import Adam
from fastmeta.adaptation.base import (
    Adaptation,
    Adapted,
    Cotangents,
    Grads,
    InnerStep,
    LossFn,
    Pullback,
    Tape,
)
from fastmeta.adaptation.meta_sgd import MetaSGD
from fastmeta.adaptation.sgd import SGD

ADAPTATIONS = {"adam": Adam, "meta-sgd": MetaSGD, "sgd": SGD}

__all__ = [
    "ADAPTATIONS",
    "SGD",
    "Adam",
    "Adaptation",
    "Adapted",
    "Cotangents",
    "Grads",
    "InnerStep",
    "LossFn",
    "MetaSGD",
    "Pullback",
    "Tape",
]
