"""Gated attention over a set of vectors: tokens of a patch, or patches of a case."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GatedAttention(nn.Module):
    """(n, t, width) to weights (n, t) float32: u_i = wᵀ(tanh(V p_i) ⊙ σ(U p_i)), a = softmax(u / T).

    The hidden width is a quarter of `width` (our choice). Source: Ilse et al. 2018, eq. 9, without biases.
    """

    def __init__(self, width: int, temperature: float = 1.0) -> None:
        super().__init__()
        hidden = max(1, width // 4)
        self.temperature = temperature
        self.value, self.gate = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (n, t) bool is False where a token counts as absent; at least one of each row must be True."""
        with torch.autocast(tokens.device.type, enabled=False):
            p = tokens.float()
            u = self.score(torch.tanh(self.value(p)) * torch.sigmoid(self.gate(p))).squeeze(-1) / self.temperature
            if mask is not None:
                u = u.masked_fill(~mask, float("-inf"))
            weights: Tensor = u.softmax(dim=1)
        return weights
