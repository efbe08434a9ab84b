"""Micro-networks as attacks see them, and drawn patches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from midog.models.backbones import find_backbone
from midog.models.build import build_backbone

SIZE = 64


class Encoder(nn.Module):
    """A micro-backbone on pixels in [0, 1]: it normalises inside, as every attacked callable does."""

    def __init__(self, name: str, seed: int = 0) -> None:
        super().__init__()
        record = find_backbone(name)
        self.backbone = build_backbone(record, "random", seed).float()
        self.head = nn.Linear(record.features, 1)
        nn.init.normal_(self.head.weight, generator=torch.Generator().manual_seed(seed + 1))
        self.register_buffer("mean", torch.tensor(record.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(record.std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.backbone((pixels - self.mean) / self.std)
        return features

    def logit(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(self(pixels))[:, 0]
        return logits


@pytest.fixture(autouse=True)
def quick(one_thread: None) -> None:
    """All tests here."""


@pytest.fixture(scope="session")
def encoder() -> Callable[..., Encoder]:
    """Build one by name (`test_vit`, `test_convnextv2`) and seed, in eval mode, random weights."""
    return lambda name, seed=0: Encoder(name, seed).eval()


@pytest.fixture(scope="session")
def vit(encoder: Callable[..., Encoder]) -> Encoder:
    return encoder("test_vit")


@pytest.fixture(scope="session")
def conv(encoder: Callable[..., Encoder]) -> Encoder:
    return encoder("test_convnextv2")


@pytest.fixture(scope="session")
def pixels() -> Tensor:
    """(8, 3, 64, 64) float32 in 0.1…0.9: smooth blobs, on the 8-bit grid; nothing is clipped below ε = 0.1."""
    coarse = torch.rand((8, 3, 8, 8), generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")
    return ((0.1 + 0.8 * smooth) * 255).round() / 255
