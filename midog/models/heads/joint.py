"""JWTH-style joint-weighted head: patch tokens pooled by attention, weighed against the CLS token by a gate.

After the abstract of Liu et al. 2025 (arXiv:2511.05150), which gives no equations: the formulas are ours. With patch
tokens p_i and the global token c,

    a = softmax(wᵀ(tanh(V p_i) ⊙ σ(U p_i)) / T),  l = Σ a_i p_i,  g = σ(w_gᵀ[c; l] + b_g),
    logit = W [g·LN(c); (1−g)·LN(l)] + b.

In a CNN the positions of the last feature map are the tokens and their mean is the global token (our choice).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from midog.errors import UsageError
from midog.models.heads.attention import GatedAttention
from midog.models.heads.base import HeadModule, Needs, told_mean

GRAM = 0.1
"""Weight of the Gram term where `gram: auto` switches it on (our choice)."""
REACH = 2.5
"""Tokens from the grid's centre that still count as central: the middle 4×4, or 5×5 where the side is odd."""
FAINT = 1e-8
"""Least attention whose logarithm is taken."""


@dataclass(frozen=True)
class Joint:
    """All values are our choice; `gate` and `pooling` also give the baselines.

    Attributes:
        temperature: T of the attention.
        gate: `learned`, or a fixed number: 1 is the CLS token alone, 0 the pooled tokens alone, 0.5 both as they are.
        pooling: `attention`, or `mean` of the tokens.
        gram: weight of the Gram term, which keeps the similarities between tokens as the untuned backbone has them.
            `auto` is 0.1 with adapters (lora, rslora, dora) and 0 elsewhere: only they can be switched off.
        central: weight of −log of the attention on the central tokens.
        dropout: on what the last linear layer is given.
    """

    kind: Literal["joint"] = "joint"
    temperature: float = 1.0
    gate: float | str = "learned"
    pooling: str = "attention"
    gram: float | str = "auto"
    central: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"head.temperature is {self.temperature}", "a number above 0; 1 leaves the scores alone")
        if self.gate != "learned" and (isinstance(self.gate, str) or not 0 <= self.gate <= 1):
            raise UsageError(f"head.gate is {self.gate}", "`learned`, or a number from 0 (tokens) to 1 (CLS)")
        if self.pooling not in ("attention", "mean"):
            raise UsageError(f"head.pooling is {self.pooling}", "attention or mean")
        if self.gram != "auto" and (isinstance(self.gram, str) or not 0 <= self.gram < float("inf")):
            raise UsageError(f"head.gram is {self.gram}", "`auto`, or a number from 0 (off); 0.1 is usual")
        if not 0 <= self.central < float("inf"):
            raise UsageError(f"head.central is {self.central}", "a number from 0 (off)")
        if self.central and self.pooling == "mean":
            raise UsageError("head.central asks the mean of all tokens to look at the centre", "pooling: attention")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"head.dropout is {self.dropout}", "a number from 0 to below 1")


class JointHead(HeadModule):
    """(n, prefix + t, width) to (n,) float32 logits; the global token comes first, other prefix tokens are ignored.

    Args:
        width: of a token.
        prefix: tokens before those of the patch.
        settings: see `Joint`.
        gram: weight of the Gram term, `auto` resolved.
    """

    needs: Needs = "tokens"
    has_losses = True

    def __init__(self, width: int, prefix: int, settings: Joint, gram: float = 0.0) -> None:
        super().__init__()
        self.settings, self.prefix, self.gram = settings, prefix, gram
        self.attention = GatedAttention(width, settings.temperature) if settings.pooling == "attention" else None
        self.gate = nn.Linear(2 * width, 1) if settings.gate == "learned" else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)
        self.norm_global, self.norm_local = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)
        self.linear = nn.Linear(2 * width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self._masses: list[Tensor] = []

    @property
    def wants_frozen(self) -> bool:  # type: ignore[override]
        return self.gram > 0

    def forward(self, given: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (n, t) bool is False where a patch token counts as absent."""
        logits: Tensor = self._logits(self.joined(given, mask)[0])
        return logits

    def vector(self, given: Tensor) -> Tensor:
        return self.joined(given)[0]

    def joined(self, given: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """h (n, 2 · width) float32, and the attention (n, t) that made it."""
        with torch.autocast(given.device.type, enabled=False):
            c, p = given[:, 0].float(), given[:, self.prefix :].float()
            a = self._weights(p, mask)
            pooled = torch.einsum("nt,ntd->nd", a, p)
            if self.gate is not None:
                g = torch.sigmoid(self.gate(torch.cat((c, pooled), dim=1)))
            else:
                g = c.new_tensor(float(self.settings.gate))
            return torch.cat((g * self.norm_global(c), (1 - g) * self.norm_local(pooled)), dim=1), a

    def attend(self, given: Tensor) -> Tensor:
        """Attention (n, h, w) over the patch, float32; each map sums to 1. No explanation without a deletion test."""
        a = self.joined(given)[1]
        side = math.isqrt(a.shape[1])
        return a.view(len(a), side, side)

    def _weights(self, p: Tensor, mask: Tensor | None) -> Tensor:
        if self.attention is not None:
            weights: Tensor = self.attention(p, mask)
            return weights
        present = p.new_ones(p.shape[:2]) if mask is None else mask.to(p.dtype)
        return present / present.sum(dim=1, keepdim=True)

    def _logits(self, h: Tensor) -> Tensor:
        with torch.autocast(h.device.type, enabled=False):
            logits: Tensor = self.linear(self.dropout(h)).squeeze(-1)
        return logits

    def answer(self, given: Tensor, targets: Tensor, frozen: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds `gram`, where it is on, and `central`; see `HeadModule`."""
        h, a = self.joined(given)
        mass = a[:, central_tokens(a.shape[1], a.device)].sum(dim=1)
        self._masses.append(mass.detach().mean())
        terms = {}
        if frozen is not None and self.gram:
            terms["gram"] = self.gram * gram_loss(given[:, self.prefix :], frozen[:, self.prefix :])
        if self.settings.central:
            terms["central"] = -self.settings.central * mass.clamp_min(FAINT).log().mean()
        return self._logits(h), terms

    def notes(self) -> dict[str, float]:
        """`central_mass`: the mean attention on the central tokens since it was last asked for."""
        return told_mean("central_mass", self._masses)


def central_tokens(count: int, device: torch.device | str = "cpu") -> Tensor:
    """(count,) bool: which tokens of a square grid, row by row, lie in its middle 4×4 (5×5 where the side is odd)."""
    side = math.isqrt(count)
    middle = (torch.arange(side, device=device) - (side - 1) / 2).abs() < REACH
    return (middle[:, None] & middle[None, :]).flatten()


def gram_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the tokens' cosine similarities, negative ones counted as 0; 0 where they agree.

    Args:
        student, teacher: (n, t, width) patch tokens; no gradient reaches the teacher.

    Source: the regulariser of DINOv3 (Siméoni et al. 2025), per image; code ours.
    """
    with torch.autocast(student.device.type, enabled=False):
        s, f = (functional.normalize(tokens.float(), dim=-1) for tokens in (student, teacher.detach()))
        ours, theirs = ((x @ x.transpose(1, 2)).relu() for x in (s, f))
        return (ours - theirs).square().mean()
