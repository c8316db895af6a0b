"""A small text encoder, trained from scratch."""

from __future__ import annotations

from torch import Tensor, nn

_PADDING = 0


class TextEncoder(nn.Module):
    """The mean of the embeddings of a text's tokens, normalised, then a linear classifier.

    As fastText (Joulin et al. 2017), with LayerNorm, so that the length of a text does not matter
    to the size of its mean.

    Args:
        vocabulary: how many token ids there are, padding included.
        ways: outputs, one a class.
        hidden: width of the embedding.

    Input ``(n, L)`` int64 token ids, where 0 is padding and counts for nothing; output
    ``(n, ways)``. A text of padding alone has the mean 0.

    Attributes:
        embedding: of the tokens.
        norm: of the mean.
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
        """Class scores ``(n, ways)`` of texts ``(n, L)``."""
        embedded = self.embedding(ids)
        counted = (ids != _PADDING).to(embedded.dtype)
        shares = counted / counted.sum(1, keepdim=True).clamp(min=1)
        # Not nn.EmbeddingBag, which cannot be differentiated twice.
        mean = (shares.unsqueeze(1) @ embedded).squeeze(1)
        scores: Tensor = self.head(self.norm(mean))
        return scores
