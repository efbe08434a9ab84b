"""ComBat between features and head: each patch takes the parameters of the training scanner nearest to its features.

The platform does not name a patch's scanner, and the hidden ones are new: so none is asked for, in training's last
step, out of fold and in the container alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from midog.models.heads.base import HeadModule


class CombatHead(HeadModule):
    """(n, features) to (n,) float32 logits of `head` on harmonised features. In float32 also under autocast.

    The buffers are those of `harmonise.Combat`: mean and sd (features,), gamma and delta (scanners, features).
    """

    mean: Tensor
    sd: Tensor
    gamma: Tensor
    delta: Tensor

    def __init__(self, head: nn.Module, scanners: int, features: int) -> None:
        super().__init__()
        self.head = head
        for name, shape in {"mean": (features,), "sd": (features,)}.items():
            self.register_buffer(name, torch.zeros(shape))
        for name in ("gamma", "delta"):
            self.register_buffer(name, torch.ones(scanners, features))

    def forward(self, given: Tensor) -> Tensor:
        logits: Tensor = self.head(self.harmonise(given))
        return logits

    def vector(self, given: Tensor) -> Tensor:
        return self.harmonise(given)

    def harmonise(self, features: Tensor) -> Tensor:
        """(n, features) to the same: location and scale of the nearest scanner taken out."""
        with torch.autocast(features.device.type, enabled=False):
            z = (features.float() - self.mean) / self.sd
            scanner = self.nearest(z)
            return self.sd * (z - self.gamma[scanner]) / self.delta[scanner].sqrt() + self.mean

    def nearest(self, z: Tensor) -> Tensor:
        """(n,) int64: the scanner whose mean is nearest to standardised features (n, features). Our choice."""
        return (z[:, None] - self.gamma).square().mean(dim=2).argmin(dim=1)
