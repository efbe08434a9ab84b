"""A network for one channel, used on colour images."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

CHANNELS = 3


def channel_by_channel(model: nn.Module) -> nn.Module:
    """A timm ViT of one input channel that takes RGB: channels go through it one by one, features stand side by side.

    Its `forward_features` maps (n, 3, s, s) to (n, tokens, 3 · width), red first; pooled to the CLS token, that is the
    feature of GenBio-PathFM (Kapse et al. 2026). Parameters keep timm's names and shapes. Changes the model in place.
    """
    kind: Any = type(model)

    class ChannelByChannel(kind):  # type: ignore[misc]
        def forward_features(self, x: Tensor, **options: Any) -> Tensor:
            n, channels, height, width = x.shape
            single = x.reshape(n * channels, 1, height, width)
            tokens: Tensor = super().forward_features(single, **options)
            return tokens.reshape(n, channels, *tokens.shape[1:]).transpose(1, 2).flatten(2)

    model.__class__ = ChannelByChannel
    for name in ("num_features", "head_hidden_size"):
        setattr(model, name, CHANNELS * int(getattr(model, name)))
    return model
