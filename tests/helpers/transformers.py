"""Small transformers as users write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import TaskBatch


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        x = x + self.out(out.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class GPT(nn.Module):
    """A decoder with pre-norm blocks, `(n, tokens)` to `(n, vocabulary, tokens)`."""

    def __init__(
        self,
        tokens: int,
        width: int = 16,
        heads: int = 2,
        layers: int = 2,
        vocabulary: int = 11,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.1 * torch.randn(tokens, width))
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(x) + self.position)).mT


class Encoder(nn.Module):
    """torch's encoder with a padding mask, `(n, tokens)` to `(n, vocabulary)`."""

    def __init__(self, width: int = 16, heads: int = 2, vocabulary: int = 11) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, heads, 24, dropout=0.0, batch_first=True, norm_first=True
        )
        self.embedding = nn.Embedding(vocabulary, width)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(self.embedding(x), src_key_padding_mask=x == 0)
        return self.head(hidden.mean(1))


def language_batch(tokens: int, tasks: int = 2, n: int = 2, vocabulary: int = 11) -> TaskBatch:
    """Random tokens and their successors."""
    x = torch.randint(1, vocabulary, (2, tasks, n, tokens + 1))
    return TaskBatch(x[0, ..., :-1], x[0, ..., 1:], x[1, ..., :-1], x[1, ..., 1:])
