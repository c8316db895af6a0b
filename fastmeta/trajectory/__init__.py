"""Meta-gradients of training runs, by a reverse sweep over the inner steps."""

from fastmeta.trajectory.function import InnerState, Metagradient, metagradient
from fastmeta.trajectory.replay import Replay
from fastmeta.trajectory.trajectory import Memory, Trajectory

__all__ = ["InnerState", "Memory", "Metagradient", "Replay", "Trajectory", "metagradient"]
