"""The plain head: pooled features to one logit of *atypical*."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from midog.errors import UsageError


@dataclass(frozen=True)
class Linear:
    """One linear layer, zero at the start: the first logits are 0 and the first gradients the data's own."""

    kind: Literal["linear"] = "linear"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UsageError(f"head.dropout is {self.dropout}", "a number from 0 to below 1")


Head = Linear
HEADS: dict[str, type[Linear]] = {"linear": Linear}


class LinearHead(nn.Module):
    """(n, features) to (n,) float32 logits. Computed in float32 also under autocast: bfloat16 would tie logits."""

    def __init__(self, features: int, settings: Linear) -> None:
        super().__init__()
        self.dropout = nn.Dropout(settings.dropout)
        self.linear = nn.Linear(features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            logit: Tensor = self.linear(self.dropout(features.float()))
        return logit.squeeze(-1)


def build_head(settings: Head, features: int) -> nn.Module:
    return LinearHead(features, settings)


def pool_features(backbone: nn.Module, x: Tensor, pooling: str) -> Tensor:
    """One feature vector per image.

    Args:
        backbone: timm network without classifier.
        x: (n, 3, s, s) float.
        pooling: `cls`; `cls+mean`: CLS beside the mean of the patch tokens, registers left out (as Virchow's authors
            do); `avg`: timm's own pooled features, or the mean of the patch tokens where timm would take the CLS token.

    Returns: (n, width); `feature_width` says how wide.
    """
    features: Tensor = backbone.forward_features(x)  # type: ignore[operator]
    if pooling == "avg":
        if features.ndim == 3 and getattr(backbone, "global_pool", None) in ("token", ""):
            return _patch_mean(backbone, features)
        pooled: Tensor = backbone.forward_head(features, pre_logits=True)  # type: ignore[operator]
        return pooled
    cls = features[:, 0]
    return cls if pooling == "cls" else torch.cat((cls, _patch_mean(backbone, features)), dim=1)


def _patch_mean(backbone: nn.Module, tokens: Tensor) -> Tensor:
    return tokens[:, int(backbone.num_prefix_tokens) :].mean(dim=1)  # type: ignore[arg-type]


def feature_width(backbone: nn.Module, pooling: str) -> int:
    width = int(backbone.num_features)  # type: ignore[arg-type]
    if pooling == "avg":
        width = int(getattr(backbone, "head_hidden_size", width) or width)
    return 2 * width if pooling == "cls+mean" else width
