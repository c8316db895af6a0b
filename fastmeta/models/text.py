"""Small text encoders for training from scratch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta._checks import check_integer

_PADDING = 0


class TextEncoder(nn.Module):
    """Mean of token embeddings, LayerNorm, then a linear classifier.

    As fastText (Joulin et al. 2017), with LayerNorm so that the norm of the mean embedding does not
    depend on the length of the text.

    Args:
        vocabulary: number of token ids, padding included.
        ways: outputs, one per class.
        hidden: width of the embedding.

    Input `(n, L)` int64 token ids, where 0 is padding and ignored; output `(n, ways)`. The mean
    of a text of only padding is 0.

    Attributes:
        embedding: the token embedding.
        norm: the LayerNorm of the mean.
        head: the linear classifier.

    Raises:
        ValueError: if a size is below 1.
    """

    def __init__(self, vocabulary: int, ways: int, hidden: int = 128) -> None:
        super().__init__()
        for name, value in {"vocabulary": vocabulary, "ways": ways, "hidden": hidden}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}.")
        self.embedding = nn.Embedding(vocabulary, hidden, padding_idx=_PADDING)
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, ways)

    def forward(self, ids: Tensor) -> Tensor:
        """Class scores `(n, ways)` of texts `(n, L)`."""
        scores: Tensor = self.head(self.norm(_mean_embedding(self.embedding, ids)))
        return scores


class LabelTextEncoder(nn.Module):
    """Class scores of texts by their similarity to the texts of the labels.

    One encoder reads both: the mean of token embeddings, then LayerNorm. A score is `exp(s)` times
    the cosine of the two encodings, with a learned `s` that begins as in CLIP (Radford et al.
    2021). So labels mean the same in every task, and a network without an inner loop can know them,
    as MAMF does (Wang et al. 2022). There is no classifier of a fixed number of classes.

    Args:
        vocabulary: number of token ids, padding included.
        hidden: width of the embedding.

    Input: `ids` `(n, L)` int64 token ids of texts, and `labels` `(n, ways, M)`, those of the texts
    of the classes, the same for all examples of a task, as `EpisodeSampler` with `label_ids`
    yields them; output `(n, ways)`. 0 is padding and ignored.

    Attributes:
        embedding: the token embedding.
        norm: the LayerNorm of the mean.
        log_scale: `s`.

    Raises:
        ValueError: if a size is below 1.
    """

    def __init__(self, vocabulary: int, hidden: int = 128) -> None:
        super().__init__()
        for name, value in {"vocabulary": vocabulary, "hidden": hidden}.items():
            check_integer(name, value, 1)
        self.embedding = nn.Embedding(vocabulary, hidden, padding_idx=_PADDING)
        self.norm = nn.LayerNorm(hidden)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Class scores `(n, ways)` of texts `(n, L)`."""
        texts, classes = self.encode(ids), self.encode(labels[0])
        scores: Tensor = self.log_scale.exp() * texts @ classes.mT
        return scores

    def encode(self, ids: Tensor) -> Tensor:
        """Encodings `(n, hidden)` of texts `(n, L)`, of length 1."""
        encoded = self.norm(_mean_embedding(self.embedding, ids))
        return F.normalize(encoded, dim=1)


def _mean_embedding(embedding: nn.Embedding, ids: Tensor) -> Tensor:
    """The mean `(n, hidden)` of the embeddings of the tokens of texts `(n, L)`."""
    embedded = embedding(ids)
    mask = (ids != _PADDING).to(embedded.dtype)
    weights = mask / mask.sum(1, keepdim=True).clamp(min=1)
    # Not nn.EmbeddingBag, which is not twice differentiable.
    mean: Tensor = (weights.unsqueeze(1) @ embedded).squeeze(1)
    return mean
