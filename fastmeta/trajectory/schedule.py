"""Which states of an inner run are kept: binomial checkpointing.

`s` states and at most `L` runs of each inner step suffice for `C(s + L - 1, L)` steps (Griewank &
Walther 2000, "Algorithm 799: Revolve", with `s - 1` checkpoints and the current state).
"""

from __future__ import annotations

import math
from typing import Literal

from fastmeta._checks import check_choice, check_integer

# Which states of a run are kept; see `Trajectory`.
Memory = Literal["all", "sqrt", "log"] | int


def states_kept(memory: Memory, steps: int) -> int:
    """The largest number `s` of states that are held at once.

    Args:
        memory: `"all"`: one per step. `"sqrt"`: `ceil(sqrt(steps))` and the current one. `"log"`:
            as few as possible if each step is run at most `s` times, `C(2 s - 1, s) >= steps`. An
            integer: this number.
        steps: `K`.

    Raises:
        ValueError: if `memory` is unknown, or an integer below 2.
    """
    if not isinstance(memory, str):
        check_integer("memory", memory, 2)
        return min(memory, max(steps, 1))
    check_choice("memory", memory, ("all", "sqrt", "log"))
    if memory == "all":
        return max(steps, 1)
    if memory == "sqrt":
        return min(math.isqrt(max(steps, 1) - 1) + 2, max(steps, 1))
    states = 1
    while capacity(states, states) < steps:
        states += 1
    return states


def capacity(states: int, runs: int) -> int:
    """How many steps can be reversed with so many states, if each is run at most `runs` times."""
    return math.comb(states + runs - 1, runs)


def runs_needed(states: int, steps: int) -> int:
    """How often each step must be run at most."""
    runs = 1
    while capacity(states, runs) < steps:
        runs += 1
    return runs


def steps_to_next(states: int, steps: int) -> int:
    """After how many of the steps the next state is kept, if `states` are fewer than `steps`."""
    runs = runs_needed(states, steps)
    return min(capacity(states, runs - 1), steps - capacity(states - 1, runs - 1))


def steps_run(memory: Memory, steps: int) -> int:
    """How many inner steps are run in all, without those that the reverse sweep repeats.

    `L K - C(s + L - 1, L - 1) + 1` with `s` states and `L` runs, the fewest possible.
    """
    states = states_kept(memory, steps)
    runs = runs_needed(states, steps)
    return runs * steps - math.comb(states + runs - 1, runs - 1) + 1
