"""Trains in processes that kill themselves in the middle of a reverse sweep.

killed_sweep.py LOOP FOLDER REPETITIONS [FOLDER REPETITIONS ...]

Each process continues what is in its folder, and is killed when so many inner steps have been
repeated; never with 0. LOOP is "own", a loop of ``fastmeta.metagradient`` with
``fastmeta.train.Checkpoints``, or "learner", a run of ``fastmeta train``. Prints the exit code of
each process, and the number of steps in its newest checkpoint.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import fastmeta
from fastmeta.adaptation import AdamW
from fastmeta.train import Checkpoints, configure, train_or_resume
from fastmeta.train.checkpoint import FORMAT, OWN_LOOP, checkpoints, load_checkpoint
from fastmeta.trajectory import InnerState, Replay

OUTER_STEPS = 6
INNER_STEPS = 40  # of a window


def kill_after(repetitions: int) -> None:
    """Kills the process when so many inner steps have been repeated."""
    done = 0

    def counted(method: Callable[..., Any]) -> Any:
        def counting(self: Replay, number: int) -> Any:
            nonlocal done
            done += 1
            if done == repetitions:
                os.kill(os.getpid(), signal.SIGKILL)
            return method(self, number)

        return counting

    # For a product with the Hessian, or for a gradient with its graph.
    Replay.repeat = counted(Replay.repeat)  # type: ignore[method-assign]
    Replay.before = counted(Replay.before)  # type: ignore[method-assign]


def own_loop(folder: Path) -> None:
    """Weights of examples, learned on windows of one run with dropout."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    x, y = torch.randn(60, 5), torch.randint(3, (60,))
    module = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    weights = nn.Parameter(torch.zeros(60))
    optimizer = torch.optim.Adam([weights], lr=0.1)
    params: Any = dict(module.named_parameters())
    inner = None

    def inner_loss(params: Any, weights: Tensor, batch: Tensor) -> Tensor:
        outputs = functional_call(module, params, (x[batch],))
        losses = F.cross_entropy(outputs, y[batch], reduction="none")
        return (weights[batch].sigmoid() * losses).mean()

    def outer_loss(params: Any, weights: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(module, params, (x[:20],)), y[:20])

    saving = Checkpoints(folder)
    done, saved = saving.load()
    if saved is not None:
        weights.data.copy_(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        module.load_state_dict(saved["module"])  # its buffers
        params, inner = saved["params"], InnerState(saved["inner"][0], tuple(saved["inner"][1]))
    for step in range(done, OUTER_STEPS):
        batches = [torch.from_numpy(np.random.permutation(60)[:12]) for _ in range(INNER_STEPS)]
        found = fastmeta.metagradient(
            inner_loss,
            outer_loss,
            params,
            weights,
            batches,
            optimizer=AdamW(0.01, eps=1e-4),
            memory="sqrt",
            state=inner,
            buffers=module.buffers(),
        )
        weights.grad = found.meta
        optimizer.step()
        params, inner = found.final_params, found.state
        saving.save(
            step + 1,
            {
                "weights": weights,
                "optimizer": optimizer.state_dict(),
                "module": module.state_dict(),
                "params": params,
                "inner": [inner.step, inner.optimizer],
            },
        )


def learner(folder: Path) -> None:
    """Exact MAML on sines with few states of the inner loop."""
    options = {
        **{"dataset": "sine", "method": "maml", "metagrad": "recursion", "engine": "loop"},
        **{"metagrad_options": {"memory": "log"}, "inner_steps": 9, "steps": 6, "meta_batch": 2},
        **{"hidden": [8], "checkpoint_every": 1, "keep": 9, "val_every": 6, "val_tasks": 2},
        **{"test_tasks": 2, "untrained": False, "plots": False, "out": str(folder)},
    }
    train_or_resume(configure(options))


def in_a_process(loop: Callable[[Path], None], folder: Path, repetitions: int) -> None:
    """Forks this process, which has trained nothing, and waits for it."""
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        kill_after(repetitions)
        loop(folder)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    newest = load_checkpoint(checkpoints(folder)[-1], form=FORMS[loop.__name__])
    print(code, newest["step"], flush=True)


FORMS = {"own_loop": OWN_LOOP, "learner": FORMAT}

if __name__ == "__main__":
    torch.set_num_threads(1)
    name, *jobs = sys.argv[1:]
    for path, repetitions in zip(jobs[::2], jobs[1::2], strict=True):
        in_a_process({"own": own_loop, "learner": learner}[name], Path(path), int(repetitions))
