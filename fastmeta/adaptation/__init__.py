"""Room 1: inner adaptation, from the initialisation to a task's fast weights."""

from fastmeta.adaptation.base import Adaptation, Adapted, LossFn
from fastmeta.adaptation.sgd import SGD

ADAPTATIONS = {"sgd": SGD}

__all__ = ["ADAPTATIONS", "SGD", "Adaptation", "Adapted", "LossFn"]
