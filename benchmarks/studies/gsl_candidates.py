"""Candidates of the GSL study: options of a training run, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EVERY = 10  # meta-steps between calibrations of R4

# Those in the plot.
SHOWN = ("R0", "R1 +1", "R1 +1 inner-lr", "R2", "R2p", "R3", "R4 three", "R5", "R6")

# The slope per weight of R2p falls with the number of weights: 112,000 and 1,800.
_R2P_RATE = {"omniglot": 100.0, "sine": 2.0}

# Layers whose support gradient is compared beyond the head: blocks, or linear layers.
_DEEPER = {
    "omniglot": {"two layers": "00011", "three layers": "00111", "four layers": "01111"},
    "sine": {"two layers": "011"},
}

# Mixed order from none to all layers, for the plot of accuracy per cost.
CURVE = ("R0", "GSL", *(f"GSL {name}" for name in (*_DEEPER["omniglot"], "all layers")))


def candidates(dataset: str, steps: int) -> dict[str, Mapping[str, Any]]:
    """Options added to those of method ``gsl``, for a run of ``steps`` meta-steps.

    Magnitude ``ratio`` is left out: it equals ``norm-match`` with another ``eta``.
    """
    tenth, third, half = (max(1, steps // n) for n in (10, 3, 2))
    rules: dict[str, dict[str, Any]] = {
        "R0": {"variant": "R0"},
        "R1 -0.3": {"eta": -0.3},
        "R1 +0.3": {"eta": 0.3},
        "R1 +1": {"eta": 1.0},
        "R1 +3": {"eta": 3.0},
        "R1 +1 per layer": {"scope": "layer"},
        "R1 +0.1 none": {"eta": 0.1, "magnitude": "none"},
        "R1 +1 clip 0.3": {"magnitude": "clip", "ratio": 0.3},
        "R1 +1 inner-lr": {"magnitude": "inner-lr"},
        "R1 -1 inner-lr": {"eta": -1.0, "magnitude": "inner-lr"},
        "R1 L2 +0.1 none": {"eta": 0.1, "lam_c": 0.0, "lam_2": 1.0, "magnitude": "none"},
        "R1 L2 +1": {"lam_c": 0.0, "lam_2": 1.0},
        "R1 cos + L2 +1": {"lam_2": 0.01},
        "R1 +1 warmup": {"schedule": f"warmup:{tenth}"},
        "R1 +1 linear": {"schedule": f"linear:{steps}"},
        "R1 +1 cosine": {"schedule": f"cosine:{steps}"},
        "R1 +1 step": {"schedule": f"step:{third}:0.3"},
        "R1 +1 late": {"schedule": f"late:{half}"},
        "R1 +1 until": {"schedule": f"until:{half}"},
        "R2": {"variant": "R2", "eta": 0.1},
        "R2p": {"variant": "R2p", "eta": _R2P_RATE[dataset]},
        "R4 two": {"variant": "R4", "every": EVERY, "secant": False},
        "R4 three": {"variant": "R4", "every": EVERY},
        "R5": {"variant": "R5"},
        # torch has no forward-mode derivative of mse_loss.
        "R6": {"variant": "R6", "hvp": "reverse" if dataset == "sine" else "forward"},
    }
    task_weights = {
        "metagrad": "first-order",
        "aggregation": "gsl",
        "aggregation_options": {"tau": 0.1},
    }
    rules |= {
        "GSL": {"variant": "similarity"},
        "GSL cosine": {"variant": "similarity", "lam_d": 0.0, "lam_c": 1.0},
        "GSL L2": {"variant": "similarity", "lam_d": 0.0, "lam_2": 1.0},
        "GSL all layers": {"variant": "similarity", "layers": "all"},
    }
    for name, layers in _DEEPER[dataset].items():
        rules[f"GSL {name}"] = {"variant": "similarity", "layers": layers}
    found = {name: {"metagrad_options": options} for name, options in rules.items()}
    return dict(sorted({**found, "R3": task_weights}.items(), key=lambda item: item[0][:2]))
