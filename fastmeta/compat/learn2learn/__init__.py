"""learn2learn 0.2.0's interface for gradient-based meta-learning.

`from fastmeta.compat import learn2learn as l2l` replaces `import learn2learn as l2l`.
"""

from fastmeta.compat._missing import register
from fastmeta.compat.learn2learn import algorithms, data, nn, optim, utils, vision
from fastmeta.compat.learn2learn._unsupported import ALIASES, INSTEAD
from fastmeta.compat.learn2learn.utils import (
    accuracy,
    clone_module,
    clone_named_parameters,
    clone_parameters,
    detach_module,
    magic_box,
    update_module,
)

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

register(__name__, ALIASES, INSTEAD)
