"""Long training: memory, tensors, objects and open files do not grow.

``python -m tests.stress.soak --steps 10000`` alternates between learners with every engine and many
kinds of meta-gradient, and samples the resources of the process. A line fitted to the last half of
the samples may rise by at most 4 MiB of resident memory and 200 Python objects, and by no tensor
and no open file.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import sys
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastmeta import learners
from fastmeta.data import EpisodeSampler, SineTasks, load_digits
from fastmeta.models import MLP, Conv4

MAX_MEMORY = 2**22  # bytes, over half the run
MAX_OBJECTS = 200  # of Python, over half the run; caches of the interpreter come and go
SAMPLES = 40

CASES: dict[str, dict[str, Any]] = {
    "the compiled MLP step": {"method": "maml", "engine": "mlp"},
    "the loop": {"method": "maml", "engine": "loop"},
    "tasks at once": {"method": "gsl", "engine": "batched"},
    "the recursion": {"method": "maml", "engine": "loop", "metagrad": "recursion"},
    "implicit gradients": {"method": "imaml"},
    "Reptile": {"method": "reptile"},
    "PCGrad": {"method": "fomaml", "aggregation": "pcgrad"},
    "learned rates": {"method": "meta-sgd"},
    "convolutions": {"method": "fomaml", "images": True},
    "convolutions, exactly": {"method": "maml++", "images": True},
}


class Resources(NamedTuple):
    """Resources of the process."""

    memory: int
    tensors: int
    objects: int
    files: int


def resources() -> Resources:
    gc.collect()
    objects = gc.get_objects()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Resources(
        pages * resource.getpagesize(),
        sum(issubclass(type(o), torch.Tensor) for o in objects),
        len(objects),
        len(os.listdir("/proc/self/fd")),
    )


def steps(case: dict[str, Any]) -> Callable[[int], Any]:
    """Takes meta-steps by their number."""
    options = dict(case)
    if options.pop("images", False):
        images = load_digits("train", examples_per_class=5)
        tasks: Any = EpisodeSampler(images, ways=3, shots=1, queries=2, tasks=2)
        module: torch.nn.Module = Conv4(1, image_size=8, ways=3, hidden=4, downsample="stride")
        loss: Any = torch.nn.functional.cross_entropy
    else:
        tasks = SineTasks(tasks=2, shots=5, queries=5)
        module, loss = MLP(1, 1, [8]), torch.nn.functional.mse_loss
    learner = learners.build(module=module, loss=loss, inner_lr=0.01, inner_steps=2, **options)
    return lambda number: learner.step(tasks[number])


def rise(values: Sequence[int]) -> float:
    """Rise of the line fitted to the values, from the first to the last point."""
    slope = float(np.polyfit(range(len(values)), values, 1)[0])
    return slope * (len(values) - 1)


def soak(total: int) -> list[Resources]:
    """Resources of the process at equal intervals, alternating between the cases."""
    turns = cycle([steps(case) for case in CASES.values()])
    every = max(1, total // SAMPLES // len(CASES)) * len(CASES)  # whole rounds
    samples = []
    for number in range(total):
        next(turns)(number)
        if (number + 1) % every == 0:
            samples.append(resources())
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the initialisations")
    parser.add_argument("--record", action="store_true", help="write the result to results.md")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    samples = soak(arguments.steps)
    last = samples[len(samples) // 2 :]
    memory, tensors, objects, files = (rise(values) for values in zip(*last, strict=True))
    result = (
        f"{arguments.steps} meta-steps of {len(CASES)} learners; over the last half memory rose by "
        f"{memory / 2**20:.2f} MiB of {last[-1].memory / 2**20:.0f}, tensors by {tensors:.1f} of "
        f"{last[-1].tensors}, Python's objects by {objects:.0f} of {last[-1].objects}, open files "
        f"by {files:.1f}"
    )
    print(result)
    if memory > MAX_MEMORY or objects > MAX_OBJECTS or max(tensors, files) > 0.5:
        sys.exit("resources grow too much")
    if arguments.record:
        from tests.stress.training_runs import (
            record,  # which imports much that would be sampled, too
        )

        record(f"python -m tests.stress.soak --steps {arguments.steps}", result)


if __name__ == "__main__":
    main()
