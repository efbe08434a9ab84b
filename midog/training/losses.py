"""Losses on one logit of *atypical*; targets may be soft (shares of expert votes)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

LOSSES = ("bce", "focal", "domain_focal")


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy per patch: (n,) logits, (n,) targets in [0, 1] → (n,)."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Focal loss per patch, `|target − p|^gamma · bce`: (n,) → (n,). `gamma` 0 is `bce`.

    For targets 0 and 1 this is `−(1 − p_t)^gamma · log p_t` (Lin et al. 2017, eq. 4, without the class weight: sampling
    balances the classes here). The form with soft targets is that of Li et al. 2020 (quality focal loss).
    """
    if gamma == 0:
        return bce(logits, targets)
    # Clamped: the slope of x^gamma at 0 is infinite for gamma below 1.
    distance = (targets - torch.sigmoid(logits)).abs().clamp_min(1e-7)
    return distance.pow(gamma) * bce(logits, targets)


def domain_weights(domains: Sequence[str]) -> NDArray[np.float32]:
    """Weight of each patch, inverse to its domain's frequency: (n,) float32 of mean 1.

    `w = n / (D · n_d)` for D domains: every domain weighs the same in total, and the loss keeps its scale. The
    challenge's winner weights its focal loss by domain; its formula is not published, this one is our choice.
    """
    names, inverse, counts = np.unique(np.asarray(domains, dtype=str), return_inverse=True, return_counts=True)
    per_domain = len(inverse) / (len(names) * counts)
    return np.asarray(per_domain[inverse], dtype=np.float32)


def loss(kind: str, logits: Tensor, targets: Tensor, weights: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """Mean loss of a batch, in float32 whatever the logits are.

    Args:
        kind: bce, focal or domain_focal; the last one needs `weights`.
        logits: (n,) logits of atypical.
        targets: (n,) in [0, 1].
        weights: (n,) patch weights of mean 1 over the training patches (`domain_weights`).
        gamma: focusing exponent of the focal losses.
    """
    logits = logits.float()
    if kind == "bce":
        return bce(logits, targets).mean()
    if kind == "focal":
        return focal(logits, targets, gamma).mean()
    if kind == "domain_focal" and weights is not None:
        return (weights * focal(logits, targets, gamma)).mean()
    raise ValueError(
        f"no such loss: {kind!r} (weights {'given' if weights is not None else 'absent'}); one of {LOSSES}"
    )
