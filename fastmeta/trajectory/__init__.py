"""Meta-gradients of training runs, by a reverse sweep over the inner steps."""

from fastmeta.trajectory.comparison import Comparison, compare_with_exact
from fastmeta.trajectory.function import metagradient
from fastmeta.trajectory.implicit import Implicit, Sama
from fastmeta.trajectory.methods import Exact, FirstOrder, Info, Method
from fastmeta.trajectory.replay import Replay
from fastmeta.trajectory.result import InnerState, Metagradient
from fastmeta.trajectory.schedule import Memory, states_kept, steps_run
from fastmeta.trajectory.trajectory import Trajectory

__all__ = [
    "Comparison",
    "Exact",
    "FirstOrder",
    "Implicit",
    "Info",
    "InnerState",
    "Memory",
    "Metagradient",
    "Method",
    "Replay",
    "Sama",
    "Trajectory",
    "compare_with_exact",
    "metagradient",
    "states_kept",
    "steps_run",
]
