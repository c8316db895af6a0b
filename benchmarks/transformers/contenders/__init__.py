"""Contenders: a module with ``make(case, module, batch, **options)``, options, and a title."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.transformers.cases import Case

HERE = "benchmarks.transformers.contenders"
STEP, REFERENCES = "training-step", ("plain", "exact")


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
        device: that it needs, if any.
        compiled: whether ``make`` compiles it, so that its first call loads nothing.
    """

    title: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    rival: bool = False
    exact: bool = True
    networks: tuple[str, ...] = ("gpt", "lora", "vit")
    device: str | None = None
    compiled: bool = False

    def runs(self, case: Case) -> bool:
        """Whether it is a contender of this case."""
        return case.network in self.networks and self.device in (None, case.device)

    def make(self, case: Case, module: Any, batch: Any) -> Callable[[], Any]:
        """Its meta-gradient."""
        return importlib.import_module(self.module).make(case, module, batch, **self.options)


def _ours(title: str, metagrad: str, **options: Any) -> Contender:
    return Contender(title, f"{HERE}.fastmeta_learner", {"metagrad": metagrad, **options})


def _jax(title: str, **options: Any) -> Contender:
    return Contender(title, f"{HERE}.jax_maml", options, rival=True, device="cpu", compiled=True)


ALL = ("gpt", "lora", "vit", "attention")
CONTENDERS = {
    STEP: Contender("training step", f"{HERE}.training_step", exact=False, networks=ALL),
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
}
