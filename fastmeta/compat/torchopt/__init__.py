"""TorchOpt 0.7.3's interface: differentiable and functional optimizers, implicit functions.

`from fastmeta.compat import torchopt` replaces `import torchopt`.
"""

from fastmeta.compat._missing import register
from fastmeta.compat.torchopt import (
    alias,
    clip,
    diff,
    hook,
    linear_solve,
    nn,
    optim,
    schedule,
    transform,
    utils,
)
from fastmeta.compat.torchopt._unsupported import ALIASES, INSTEAD
from fastmeta.compat.torchopt.alias import adam, adamw, rmsprop, sgd
from fastmeta.compat.torchopt.clip import clip_grad_norm
from fastmeta.compat.torchopt.hook import register_hook
from fastmeta.compat.torchopt.optim import (
    SGD,
    Adam,
    AdamW,
    FuncOptimizer,
    MetaAdam,
    MetaAdamW,
    MetaOptimizer,
    MetaRMSProp,
    MetaRMSprop,
    MetaSGD,
    Optimizer,
    RMSProp,
    RMSprop,
    apply_updates,
)
from fastmeta.compat.torchopt.transform import GradientTransformation, chain, nan_to_num
from fastmeta.compat.torchopt.utils import (
    extract_state_dict,
    module_clone,
    module_detach_,
    recover_state_dict,
    stop_gradient,
)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "FuncOptimizer",
    "GradientTransformation",
    "MetaAdam",
    "MetaAdamW",
    "MetaOptimizer",
    "MetaRMSProp",
    "MetaRMSprop",
    "MetaSGD",
    "Optimizer",
    "RMSProp",
    "RMSprop",
    "adam",
    "adamw",
    "alias",
    "apply_updates",
    "chain",
    "clip",
    "clip_grad_norm",
    "diff",
    "extract_state_dict",
    "hook",
    "linear_solve",
    "module_clone",
    "module_detach_",
    "nan_to_num",
    "nn",
    "optim",
    "recover_state_dict",
    "register_hook",
    "rmsprop",
    "schedule",
    "sgd",
    "stop_gradient",
    "transform",
    "utils",
]

register(__name__, ALIASES, INSTEAD)
