"""The plain head: pooled features to one logit of *atypical*; and what heads are given of a backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from midog.errors import UsageError
from midog.models.heads.base import HeadModule


@dataclass(frozen=True)
class Linear:
    """One linear layer, zero at the start: the first logits are 0 and the first gradients the data's own."""

    kind: Literal["linear"] = "linear"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UsageError(f"head.dropout is {self.dropout}", "a number from 0 to below 1")


class LinearHead(HeadModule):
    """(n, features) to (n,) float32 logits. Computed in float32 also under autocast: bfloat16 would tie logits."""

    def __init__(self, features: int, settings: Linear) -> None:
        super().__init__()
        self.dropout = nn.Dropout(settings.dropout)
        self.linear = nn.Linear(features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, given: Tensor) -> Tensor:
        with torch.autocast(given.device.type, enabled=False):
            logit: Tensor = self.linear(self.dropout(given.float()))
        return logit.squeeze(-1)


def pool_features(backbone: nn.Module, x: Tensor, pooling: str) -> Tensor:
    """One feature vector per image.

    Args:
        backbone: timm network without classifier.
        x: (n, 3, s, s) float.
        pooling: `cls`; `cls+mean`: CLS beside the mean of the patch tokens, registers left out (as Virchow's authors
            do); `avg`: timm's own pooled features, or the mean of the patch tokens where timm would take the CLS token.

    Returns: (n, width); `feature_width` says how wide.
    """
    return pool(backbone, backbone.forward_features(x), pooling)  # type: ignore[operator]


def pool(backbone: nn.Module, features: Tensor, pooling: str) -> Tensor:
    """As `pool_features`, of what `forward_features` gave."""
    if pooling == "avg":
        if features.ndim == 3 and getattr(backbone, "global_pool", None) in ("token", ""):
            return _patch_mean(backbone, features)
        pooled: Tensor = backbone.forward_head(features, pre_logits=True)  # type: ignore[operator]
        return pooled
    cls = features[:, 0]
    return cls if pooling == "cls" else torch.cat((cls, _patch_mean(backbone, features)), dim=1)


def _patch_mean(backbone: nn.Module, tokens: Tensor) -> Tensor:
    return tokens[:, int(backbone.num_prefix_tokens) :].mean(dim=1)  # type: ignore[arg-type]


def token_rows(backbone: nn.Module, features: Tensor) -> Tensor:
    """What `forward_features` gave as rows (n, prefix + t, width): a global token first, patch tokens last.

    The global token is the CLS token; where there is none, as in a CNN, the mean of all positions stands before them.
    """
    if features.ndim == 4:
        if features.shape[1] != backbone.num_features:
            features = features.permute(0, 3, 1, 2)
        features = features.flatten(2).transpose(1, 2)
    if _has_cls(backbone):
        return features
    patches = features[:, prefix_rows(backbone) - 1 :]
    return torch.cat((patches.mean(dim=1, keepdim=True), features), dim=1)


def prefix_rows(backbone: nn.Module) -> int:
    """Rows of `token_rows` before the patch tokens: CLS or the mean, and registers."""
    registers = int(getattr(backbone, "num_prefix_tokens", 0))
    return registers if _has_cls(backbone) else registers + 1


def _has_cls(backbone: nn.Module) -> bool:
    return getattr(backbone, "cls_token", None) is not None and int(getattr(backbone, "num_prefix_tokens", 0)) > 0


def feature_width(backbone: nn.Module, pooling: str) -> int:
    width = int(backbone.num_features)  # type: ignore[arg-type]
    if pooling == "avg":
        width = int(getattr(backbone, "head_hidden_size", width) or width)
    return 2 * width if pooling == "cls+mean" else width
