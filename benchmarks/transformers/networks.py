"""Transformers in plain torch: GPT, GPT with LoRA adapters, and ViT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.transformers.cases import PATCH, RANK, VOCABULARY, WAYS, Case


class LoRALinear(nn.Linear):
    """A linear layer with a frozen weight, plus a trainable product of rank ``RANK``.

    As after some training, neither factor is zero, so that all parts of the meta-gradient matter.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out)
        self.lora_a = nn.Parameter(torch.randn(RANK, width) * width**-0.5)
        self.lora_b = nn.Parameter(torch.randn(out, RANK) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., width)`` to ``(..., out)``."""
        return super().forward(x) + (x @ self.lora_a.T) @ self.lora_b.T


class Block(nn.Module):
    """Pre-LayerNorm block: attention, then an MLP of four times the width."""

    def __init__(self, width: int, heads: int, causal: bool, lora: bool) -> None:
        super().__init__()
        linear = LoRALinear if lora else nn.Linear
        self.heads, self.causal = heads, causal
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = linear(width, 3 * width)
        self.out = linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, tokens, width)`` to the same."""
        n, tokens, width = x.shape
        qkv = self.qkv(self.norm_1(x)).view(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(attended.transpose(1, 2).reshape(n, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


def blocks(case: Case, causal: bool) -> nn.Sequential:
    """The blocks of a case."""
    lora = case.network == "lora"
    return nn.Sequential(*(Block(case.width, case.heads, causal, lora) for _ in range(case.layers)))


class GPT(nn.Module):
    """Decoder with a learned position embedding and an untied head."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, case.width)
        self.positions = nn.Parameter(0.02 * torch.randn(case.tokens, case.width))
        self.blocks = blocks(case, causal=True)
        self.norm = nn.LayerNorm(case.width)
        self.head = nn.Linear(case.width, VOCABULARY, bias=False)
        if case.network == "lora":
            for name, param in self.named_parameters():
                param.requires_grad_(".lora_" in name)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``(n, tokens, vocabulary)`` of token ids ``(n, tokens)``."""
        return self.head(self.norm(self.blocks(self.tokens(ids) + self.positions)))


class ViT(nn.Module):
    """Vision transformer with the mean over patches, and a linear head."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.patches = nn.Linear(3 * PATCH**2, case.width)
        self.positions = nn.Parameter(0.02 * torch.randn(case.tokens, case.width))
        self.blocks = blocks(case, causal=False)
        self.norm = nn.LayerNorm(case.width)
        self.head = nn.Linear(case.width, WAYS)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(n, ways)`` of images ``(n, 3, size, size)``."""
        n, channels, size, _ = images.shape
        grid = images.view(n, channels, size // PATCH, PATCH, size // PATCH, PATCH)
        patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return self.head(self.norm(self.blocks(self.patches(patches) + self.positions)).mean(1))


def build(case: Case) -> nn.Module:
    """The network of a case; attention alone has none."""
    if case.network == "attention":
        return nn.Module()
    return ViT(case) if case.network == "vit" else GPT(case)
