"""Small text encoder for training from scratch."""

from __future__ import annotations

from torch import Tensor, nn

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
        embedded = self.embedding(ids)
        mask = (ids != _PADDING).to(embedded.dtype)
        weights = mask / mask.sum(1, keepdim=True).clamp(min=1)
        # Not nn.EmbeddingBag, which is not twice differentiable.
        mean = (weights.unsqueeze(1) @ embedded).squeeze(1)
        scores: Tensor = self.head(self.norm(mean))
        return scores
