"""Room 1: inner adaptation, from the initialisation to a task's fast weights."""

from fastmeta.adaptation.adam import Adam
from fastmeta.adaptation.base import Adaptation, Adapted, Grads, InnerStep, LossFn, Pullback, Tape
from fastmeta.adaptation.sgd import SGD

ADAPTATIONS = {"adam": Adam, "sgd": SGD}

__all__ = [
    "ADAPTATIONS",
    "SGD",
    "Adam",
    "Adaptation",
    "Adapted",
    "Grads",
    "InnerStep",
    "LossFn",
    "Pullback",
    "Tape",
]
