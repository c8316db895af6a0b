"""learn2learn 0.2.0's interface for gradient-based meta-learning.

``from fastmeta.compat import learn2learn as l2l`` takes the place of ``import learn2learn as l2l``.
"""

from fastmeta.compat.learn2learn import algorithms, data, nn, optim, utils, vision
from fastmeta.compat.learn2learn.utils import (
    accuracy,
    clone_module,
    clone_named_parameters,
    clone_parameters,
    detach_module,
    magic_box,
    update_module,
)
from fastmeta.compat.missing import missing

__all__ = [
    "accuracy",
    "algorithms",
    "clone_module",
    "clone_named_parameters",
    "clone_parameters",
    "data",
    "detach_module",
    "magic_box",
    "nn",
    "optim",
    "update_module",
    "utils",
    "vision",
]

__getattr__ = missing(
    __name__,
    {
        **utils.NOT_HERE,
        "gym": "use Gymnasium's environments, and MAML on the policy.",
        "text": "use fastmeta.data.load_clinc150 or load_banking77.",
    },
)
