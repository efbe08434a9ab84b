from __future__ import annotations

import pytest
import torch

from midog.errors import UsageError
from midog.models.build import build_backbone
from midog.models.heads.linear import Linear, LinearHead, feature_width, pool_features


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_first_logits_are_zero() -> None:
    head = LinearHead(5, Linear(dropout=0.3))
    assert torch.equal(head(torch.randn(4, 5)), torch.zeros(4))


def test_logits_are_float32_under_autocast() -> None:
    head = LinearHead(3, Linear())
    torch.nn.init.ones_(head.linear.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logit = head(torch.tensor([[1.0, 1 / 256, 1 / 4096]]))
    assert logit.dtype == torch.float32
    assert logit.item() == 1 + 1 / 256 + 1 / 4096


def test_dropout_works_in_training_only() -> None:
    head = LinearHead(100, Linear(dropout=0.5))
    torch.nn.init.ones_(head.linear.weight)
    x = torch.ones(1, 100)
    torch.manual_seed(0)
    assert head.train()(x).item() != 100
    assert head.eval()(x).item() == 100
    with pytest.raises(UsageError, match=r"head.dropout"):
        Linear(dropout=1.0)


@torch.no_grad()
def test_cls_and_patch_mean(image: torch.Tensor) -> None:
    backbone = build_backbone({"timm": "test_vit", "timm_kwargs": {"reg_tokens": 3, "img_size": 64}}).eval()
    tokens = backbone.forward_features(image)
    assert tokens.shape == (2, 1 + 3 + 16, 64)
    cls, mean = tokens[:, 0], tokens[:, 4:].mean(1)
    assert torch.equal(pool_features(backbone, image, "cls"), cls)
    assert torch.equal(pool_features(backbone, image, "cls+mean"), torch.cat([cls, mean], 1))
    assert torch.equal(pool_features(backbone, image, "avg"), mean)
    assert [feature_width(backbone, pooling) for pooling in ("cls", "cls+mean", "avg")] == [64, 128, 64]


@pytest.mark.parametrize("name", ["test_convnextv2", "test_efficientnet", "timm/test_vit2"])
@torch.no_grad()
def test_avg_is_timms_own_pooling(name: str, image: torch.Tensor) -> None:
    backbone = build_backbone(name).eval()
    features = pool_features(backbone, image, "avg")
    assert torch.equal(features, backbone(image))
    assert features.shape == (2, feature_width(backbone, "avg"))
