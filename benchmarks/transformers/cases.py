"""Cases of the comparison: networks, data and inner loops, identical for all contenders."""

from __future__ import annotations

import types
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

VOCABULARY = 1024
RANK = 8  # of LoRA's factors
PATCH, WAYS, QUERIES = 12, 5, 15  # pixels, classes per task, query images per class of the ViT


@dataclass(frozen=True)
class Case:
    """A meta-gradient: mean over tasks of the query loss gradient, at the initial weights.

    Attributes:
        name: for the command line.
        network: ``"gpt"``, ``"lora"``, ``"vit"`` or ``"attention"`` (no network).
        sequences: per support set, and per query set; not of ``"vit"``.
        tokens: per sequence.
        width: features per token, of all heads together.
        layers: number of blocks.
        heads: of the attention.
        steps: inner steps.
        optimizer: ``"sgd"`` for gradient descent on one support set; ``"adamw"`` for a training
            run, with a batch of its own in every inner step.
        tasks: per meta-batch.
        causal: for ``"attention"`` whether queries see earlier keys only.
        whole: for ``"attention"`` whether forward and backward pass are timed, too, or the backward
            pass of the backward pass alone.
        dtype: of ``"attention"``.
        device: where it runs.
        published: figures of others to print with the case.
    """

    name: str
    network: str
    sequences: int = 1
    tokens: int = 1024
    width: int = 256
    layers: int = 4
    heads: int = 4
    steps: int = 1
    optimizer: str = "sgd"
    tasks: int = 1
    causal: bool = True
    whole: bool = False
    dtype: str = "float32"
    device: str = "cpu"
    published: str = ""

    lr = 0.01
    order = 2
    # AdamW's. Rounding errors of gradients are far below eps, which the meta-gradient amplifies by
    # its inverse.
    adamw = types.MappingProxyType(
        {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1}
    )

    @property
    def title(self) -> str:
        """Network, data and inner loop."""
        data = f"{self.sequences} x {self.tokens:,} tokens"
        steps = f"{self.steps:,} inner step{'s' * (self.steps > 1)}"
        if self.optimizer == "adamw":
            steps += " of AdamW"
        size = f"{self.layers} layer{'s' * (self.layers > 1)} of width {self.width}"
        if self.network == "attention":
            part = "forward, backward and double backward" if self.whole else "double backward"
            mask = "causal" if self.causal else "full"
            width = self.width // self.heads
            return f"attention, {mask}, {data}, {self.heads} heads of {width}, {self.dtype}: {part}"
        if self.network == "vit":
            shots = f"{WAYS}-way 1-shot, {QUERIES} queries per class"
            return f"ViT, {size}, {self.tokens} patches, {shots}, {self.tasks} tasks, {steps}"
        lora = f" with LoRA of rank {RANK} on the attention" if self.network == "lora" else ""
        return f"GPT{lora}, {size}, {data}, {steps}"

    @property
    def floor(self) -> float:
        """Multiplications that an exact meta-gradient needs, in training steps of the query set.

        With 1 for a forward pass, a training step takes 3 (backward pass: 2), and an inner step 9
        (twice as many again to differentiate its 3). Frozen weights have no gradient: with LoRA
        a training step takes 2 and an inner step 4, adapters and products of activations aside.
        """
        if self.network == "attention":
            return 3.0 if self.whole else 2.0
        step, inner = (2, 4) if self.network == "lora" else (3, 9)
        support = 1 / QUERIES if self.network == "vit" else 1.0  # relative to the query set
        return (inner * self.steps * support + step) / step

    @property
    def tolerance(self) -> float:
        """Relative error of a gradient that is accepted."""
        return 1e-3 if self.dtype == "float32" else 5e-2

    @property
    def loss(self) -> Any:
        """Loss function of outputs and targets."""
        return F.cross_entropy if self.network == "vit" else token_loss

    def tiny(self) -> Case:
        """A small one like it, to load the libraries before memory is measured."""
        tokens = self.tokens if self.network == "vit" else min(self.tokens, 16)
        steps = min(self.steps, 3) if self.optimizer == "adamw" else self.steps
        return replace(self, tokens=tokens, layers=1, tasks=1, steps=steps)


def token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy per token."""
    return F.cross_entropy(logits.flatten(0, 1), ids.flatten())


def batch(case: Case) -> tuple[Tensor, ...]:
    """``support_x, support_y, query_x, query_y``, each with a leading task dimension.

    In a training run support sets have a further dimension, of the inner steps.
    For attention: queries, keys, values, the gradient of the output, and three directions.
    """
    if case.network == "attention":
        shape = (case.sequences, case.heads, case.tokens, case.width // case.heads)
        return torch.randn(7, *shape).to(getattr(torch, case.dtype)).unbind()
    if case.network == "vit":
        size = PATCH * round(case.tokens**0.5)

        def images(per_class: int) -> tuple[Tensor, Tensor]:
            y = torch.arange(WAYS).repeat(per_class).expand(case.tasks, -1).contiguous()
            return torch.randn(*y.shape, 3, size, size), y

        return *images(1), *images(QUERIES)
    sizes = (case.tasks, case.sequences, case.tokens + 1)
    inner = (case.tasks, case.steps, *sizes[1:]) if case.optimizer == "adamw" else sizes
    ids = torch.randint(VOCABULARY, inner), torch.randint(VOCABULARY, sizes)
    return tuple(part for each in ids for part in (each[..., :-1], each[..., 1:]))


CASES = (
    Case("gpt-4x128-k1", "gpt", 4, 128),
    Case("gpt-4x128-k8", "gpt", 4, 128, steps=8),
    Case("gpt-1024", "gpt"),
    Case("gpt-2048", "gpt", tokens=2048),
    Case("gpt-4096", "gpt", tokens=4096),
    Case("gpt-wide-1024", "gpt", width=512, layers=8, heads=8),
    Case("lora-1024", "lora"),
    Case("vit", "vit", tokens=49, width=192, layers=6, heads=3, tasks=4),
    Case("attention-causal", "attention", tokens=2048),
    Case("attention-full", "attention", tokens=2048, causal=False),
)
TRAINING_RUNS = (
    Case("adamw-k8", "gpt", 4, 128, steps=8, optimizer="adamw"),
    Case("adamw-k32", "gpt", 4, 128, steps=32, optimizer="adamw"),
    Case("adamw-k1000", "gpt", 1, 16, 32, 1, 2, steps=1000, optimizer="adamw"),
)
GPU_CASES = (
    *(replace(case, device="cuda") for case in CASES),
    Case(
        "attention-8192",
        "attention",
        tokens=8192,
        width=12 * 64,
        heads=12,
        whole=True,
        dtype="bfloat16",
        device="cuda",
        published="JAX on an H200, published, not measured: flash-hog with Pallas 9.46 ms, with "
        "ThunderKittens 5.56 ms",
    ),
)
