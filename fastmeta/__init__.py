"""Fast gradient-based meta-learning for PyTorch, on compiled kernels.

Names are imported when they are first used, so that `import fastmeta` does not load torch.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmeta import (
        adaptation,
        aggregation,
        data,
        distributed,
        engines,
        evaluation,
        learners,
        metagrad,
        models,
        ops,
        optim,
    )
    from fastmeta.aggregation.multitask import aggregate
    from fastmeta.backend import BuildInfo, build_info, keep_freed_memory, show_config
    from fastmeta.evaluation import Evaluation, evaluate
    from fastmeta.functional import CoLearner, model_loss
    from fastmeta.gradients import FlatLayout
    from fastmeta.learners import FOMAML, GSL, MAML, MetaLearner, Reptile
    from fastmeta.optim import GSLOptimizer, TaskOptimizer
    from fastmeta.tasks import RaggedTaskBatch, Task, TaskBatch
    from fastmeta.trajectory import metagradient

__all__ = [
    "FOMAML",
    "GSL",
    "MAML",
    "BuildInfo",
    "CoLearner",
    "Evaluation",
    "FlatLayout",
    "GSLOptimizer",
    "MetaLearner",
    "RaggedTaskBatch",
    "Reptile",
    "Task",
    "TaskBatch",
    "TaskOptimizer",
    "adaptation",
    "aggregate",
    "aggregation",
    "build_info",
    "data",
    "distributed",
    "engines",
    "evaluate",
    "evaluation",
    "keep_freed_memory",
    "learners",
    "metagrad",
    "metagradient",
    "model_loss",
    "models",
    "ops",
    "optim",
    "show_config",
]

# The modules of names that are no modules themselves.
_HOMES = {
    "fastmeta.aggregation.multitask": ("aggregate",),
    "fastmeta.backend": ("BuildInfo", "build_info", "keep_freed_memory", "show_config"),
    "fastmeta.evaluation": ("Evaluation", "evaluate"),
    "fastmeta.functional": ("CoLearner", "model_loss"),
    "fastmeta.gradients": ("FlatLayout",),
    "fastmeta.learners": ("FOMAML", "GSL", "MAML", "MetaLearner", "Reptile"),
    "fastmeta.optim": ("GSLOptimizer", "TaskOptimizer"),
    "fastmeta.tasks": ("RaggedTaskBatch", "Task", "TaskBatch"),
    "fastmeta.trajectory": ("metagradient",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

if find_spec("fastmeta._C") is None:
    raise ImportError(
        "fastmeta's compiled kernels could not be loaded: there is no fastmeta._C. Build them with "
        "'pip install -e .' in the source tree, or reinstall the wheel."
    )

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'fastmeta' has no attribute {name!r}")
        home = _HOME_OF.get(name)
        value = (
            import_module(f"fastmeta.{name}")
            if home is None
            else getattr(import_module(home), name)
        )
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
