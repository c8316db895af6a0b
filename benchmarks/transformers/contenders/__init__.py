"""Contenders: a module with ``make(case, module, batch, **options)``, options, and a title."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.transformers.cases import Case

if TYPE_CHECKING:
    from fastmeta.trajectory import Memory

HERE = "benchmarks.transformers.contenders"
STEP, REFERENCES = "training-step", ("plain", "exact", "run-plain", "run-all")


@dataclass(frozen=True)
class Contender:
    """A way to compute a meta-gradient.

    Attributes:
        title: in the tables.
        module: with ``make``.
        options: of ``make``.
        rival: whether it needs the interpreter of the other libraries.
        exact: whether its result is the exact meta-gradient.
        networks: that it can run.
        optimizers: inner optimizers that it can run.
        memory: of ``fastmeta.metagradient``, for the predicted work.
        device: that it needs, if any.
        compiled: whether ``make`` compiles it, so that its first call loads nothing.
    """

    title: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    rival: bool = False
    exact: bool = True
    networks: tuple[str, ...] = ("gpt", "lora", "vit")
    optimizers: tuple[str, ...] = ("sgd",)
    memory: Memory | None = None
    device: str | None = None
    compiled: bool = False

    def runs(self, case: Case) -> bool:
        """Whether it is a contender of this case."""
        known = case.network in self.networks and case.optimizer in self.optimizers
        return known and self.device in (None, case.device)

    def predicted(self, case: Case) -> float | None:
        """Work in training steps, if it is known beforehand.

        With 1 for a forward pass, each inner step that is run takes 3, and 9 in the reverse sweep;
        see ``Case.floor``. At most one call per step of the sweep is an inner step that was run.
        """
        if self.memory is None:
            return None
        from fastmeta.trajectory import steps_run  # not into the processes of other libraries

        return case.floor + steps_run(self.memory, case.steps)

    def make(self, case: Case, module: Any, batch: Any) -> Callable[[], Any]:
        """Its meta-gradient."""
        return importlib.import_module(self.module).make(case, module, batch, **self.options)


def _ours(title: str, metagrad: str, **options: Any) -> Contender:
    return Contender(title, f"{HERE}.fastmeta_learner", {"metagrad": metagrad, **options})


def _run(title: str, memory: Memory, **options: Any) -> Contender:
    options = {"memory": memory, **options}
    module = f"{HERE}.training_run"
    return Contender(title, module, options, optimizers=("adamw",), memory=memory)


def _rival_run(title: str, module: str, **options: Any) -> Contender:
    jax = module == "jax_training_run"
    return Contender(
        title,
        f"{HERE}.{module}",
        options,
        rival=module != "unrolled_run",
        optimizers=("adamw",),
        device="cpu" if jax else None,
        compiled=jax,
    )


def _jax(title: str, **options: Any) -> Contender:
    return Contender(title, f"{HERE}.jax_maml", options, rival=True, device="cpu", compiled=True)


ALL = ("gpt", "lora", "vit", "attention")
CONTENDERS = {
    STEP: Contender(
        "training step",
        f"{HERE}.training_step",
        exact=False,
        networks=ALL,
        optimizers=("sgd", "adamw"),
    ),
    "fomaml": Contender(
        "FOMAML (first order)",
        f"{HERE}.fastmeta_learner",
        {"metagrad": "FirstOrder"},
        exact=False,
    ),
    "plain": Contender("plain autograd", f"{HERE}.plain", networks=ALL),
    "learn2learn": Contender("learn2learn MAML", f"{HERE}.learn2learn", rival=True),
    "exact": _ours("fastmeta, Exact", "Exact"),
    "recursion-reverse": _ours("fastmeta, Recursion, reverse", "Recursion", hvp="reverse"),
    "recursion-forward": _ours("fastmeta, Recursion, forward", "Recursion", hvp="forward"),
    "checkpoint": _ours("the same, checkpoint=True", "Recursion", hvp="forward", checkpoint=True),
    "checkpoint-second-order": _ours(
        'the same, checkpoint="second-order"', "Recursion", hvp="forward", checkpoint="second-order"
    ),
    "attention": Contender(
        "fastmeta.ops.attention", f"{HERE}.fastmeta_attention", networks=("attention",)
    ),
    "jax": _jax("JAX, jit"),
    "jax-mixflow": _jax("JAX, MixFlow", mixflow=True),
    "run-plain": _rival_run("plain autograd", "unrolled_run"),
    "run-torchopt": _rival_run("TorchOpt", "torchopt_run"),
    "run-all": _run('fastmeta.metagradient, memory="all"', "all"),
    "run-sqrt": _run('the same, memory="sqrt"', "sqrt"),
    "run-6": _run("the same, memory=6", 6),
    "run-log": _run('the same, memory="log"', "log"),
    "run-disk": _run('the same, memory="all", offloaded to files', "all", offload=True),
    "run-jax": _rival_run("JAX, jit", "jax_training_run"),
    "run-jax-remat": _rival_run("JAX, jit, remat of steps", "jax_training_run", remat=True),
    "run-jax-mixflow": _rival_run("JAX, MixFlow", "jax_training_run", mixflow=True),
}
