"""Tokens by what they mean: their codebook vectors, on the way into a prior and in the logits on the way out.

Tokens of similar vectors decode alike. A prior that reads and predicts vectors need not learn that from counts:
over 32 x 32 tokens of OASIS-1 a transformer learned seven times as fast (docs/log.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def check_tokens(codes: Tensor, codebook_size: int) -> Tensor:
    """(B, h, w) int64."""
    if codes.dim() != 3 or not codes.numel() or codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(f"codes must be whole numbers (B, h, w), not {codes.dtype} {tuple(codes.shape)}")
    low, high = int(codes.min()), int(codes.max())
    if not 0 <= low <= high < codebook_size:
        raise ValueError(f"codes must lie in 0 .. {codebook_size - 1}, not {low} .. {high}")
    return codes.long()


def features_of(vectors: Tensor) -> Tensor:
    """Codebook (K, D) -> (K, D + D (D + 1) / 2): coordinates and their products, standardised over the codebook.

    Logits that are linear in these are Gaussian in the vectors.
    """
    vectors = _standard(vectors.float())
    i, j = torch.triu_indices(vectors.shape[1], vectors.shape[1])
    return torch.cat([vectors, _standard(vectors[:, i] * vectors[:, j])], 1)


def _standard(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / values.std(0, unbiased=False).clamp(min=1e-6)


def feature_count(code_dim: int) -> int:
    return code_dim + code_dim * (code_dim + 1) // 2


class TokenEmbedding(nn.Module):
    """Tokens 0 .. K - 1, and `extra` ones without a vector -> (.., dim): linear in the features, plus a table."""

    def __init__(self, codebook_size: int, extra: int, code_dim: int, dim: int):
        super().__init__()
        self.own = nn.Embedding(codebook_size + extra, dim)
        self.shared = nn.Linear(feature_count(code_dim), dim, bias=False)
        nn.init.normal_(self.own.weight, std=0.02)
        nn.init.normal_(self.shared.weight, std=feature_count(code_dim) ** -0.5)

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        shared = F.pad(self.shared(features), (0, 0, 0, len(self.own.weight) - len(features)))
        return F.embedding(tokens, self.own.weight + shared)


class TokenLogits(nn.Module):
    """(.., width) -> logits (.., K): linear in the features, plus a part of each token's own. Zero at first."""

    def __init__(self, width: int, codebook_size: int, code_dim: int):
        super().__init__()
        self.own, self.shared = nn.Linear(width, codebook_size), nn.Linear(width, feature_count(code_dim))
        for layer in (self.own, self.shared):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return self.own(x) + self.shared(x) @ features.T
