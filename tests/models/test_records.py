"""Every record against the network that timm builds from it, and against the figures that were published."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from midog.models.backbones import Backbone, find_backbone, list_backbones
from midog.models.build import empty_backbone
from midog.models.heads.linear import feature_width, pool_features
from midog.models.tuning import Lora, adapted_layers

WITHOUT_LINEAR_LAYERS = {"mobilenetv2_100", "mobilenetv1_100", "efficientvit_l2", "test_efficientnet"}
UNPUBLISHED = {"test_convnextv2"}
LARGEST_REAL = 650_000_000
"""Parameters of a ViT-H: larger networks stay without contents."""
CLASSES = 1000

# Millions as printed, where from, and whether the figure counts the ImageNet classifier that a backbone goes without.
PUBLISHED = [
    ("uni2_h", "681", "its card", False),
    ("h_optimus_0", "1.13e3", "the card of its copy under timm's names", False),
    ("h_optimus_1", "1.1e3", "its card", False),
    ("prov_gigapath", "1134.953984", "printed by the example in its card", False),
    ("vit_large_patch14_dinov2", "304.4", "timm's card", False),
    ("vit_giant_patch14_dinov2", "1136.5", "timm's card", False),
    ("vit_huge_plus_patch16_dinov3", "0.84e3", "Siméoni et al. 2025, and 3.36 GB of float32 in timm's file", False),
    ("convnextv2_large", "196.4", "timm's card of the file before fine-tuning", False),
    ("convnextv2_huge", "657.5", "timm's card of the file before fine-tuning", False),
    ("convnextv2_atto", "3.7", "Woo et al. 2023, table of model sizes", True),
    ("convnextv2_femto", "5.2", "Woo et al. 2023", True),
    ("convnextv2_pico", "9.1", "Woo et al. 2023", True),
    ("convnextv2_nano", "15.6", "Woo et al. 2023", True),
    ("convnextv2_tiny", "28.6", "Woo et al. 2023", True),
    ("convnextv2_base", "88.72", "timm's card", True),
    ("convnext_small", "50.2", "torchvision's table of models", True),
    ("convnext_base", "88.59", "timm's card", True),
    ("convnext_tiny_dinov3", "28.589128", "OpenMMLab's table of the same architecture", True),
    ("convnext_large_dinov3", "197.8", "torchvision's table, the same architecture", True),
    ("vit_base_patch16_224", "86.6", "torchvision's table, the same architecture", True),
    ("vit_large_patch16_224", "304.3", "timm's card", True),
    ("swin_base_patch4_window7_224", "88", "Liu et al. 2021, table 1", True),
    ("efficientvit_l2", "63.7", "timm's card", True),
]


@cache
def built(name: str) -> nn.Module:
    """The network of a record, without contents."""
    with torch.device("meta"):
        return empty_backbone(find_backbone(name)).eval()


def image(record: Backbone, device: str) -> Tensor:
    size = record.input_size
    return torch.rand(1, 3, size, size, device=device, generator=None if device == "meta" else generator())


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", list_backbones())
def test_record_describes_the_network(name: str) -> None:
    record, backbone = find_backbone(name), built(name)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == record.parameters
    assert feature_width(backbone, record.pooling) == record.features
    assert getattr(backbone, "num_prefix_tokens", 0) == record.prefix_tokens
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    assert (tuple(patch) if patch else None) == (None if record.patch is None else (record.patch, record.patch))
    with torch.no_grad():
        features = pool_features(backbone, image(record, "meta"), record.pooling)
    assert features.shape == (1, record.features)


@pytest.mark.parametrize("name", list_backbones())
def test_record_is_whole(name: str) -> None:
    record = find_backbone(name)
    assert len(record.mean) == len(record.std) == 3
    assert all(0 < value < 1 for value in (*record.mean, *record.std))
    assert record.patch is None or record.input_size % record.patch == 0
    assert record.licence not in ("", "unknown")
    if name not in UNPUBLISHED:
        assert record.source.count("/") == 1
        assert record.file.endswith((".safetensors", ".bin", ".pth", ".pt", ".ckpt"))
        assert record.revision
    assert find_backbone(json.loads(json.dumps(record.to_dict()))) == record


@pytest.mark.parametrize("name", list_backbones())
def test_adapters_go_where_the_record_says(name: str) -> None:
    record, backbone = find_backbone(name), built(name)
    if name in WITHOUT_LINEAR_LAYERS:
        assert record.lora_targets == ()
        return
    # Raises where a target matches nothing.
    layers = adapted_layers(backbone, Lora(), record)
    matching = {
        module_name: module
        for module_name, module in backbone.named_modules()
        if any(f".{module_name}".endswith(f".{target}") for target in record.lora_targets)
    }
    assert all(isinstance(module, nn.Linear) for module in matching.values())
    assert layers.keys() == matching.keys()
    blocks = [n for n, module in backbone.named_modules() if n.endswith(".mlp") and list(module.children())]
    assert blocks
    # No block is left out.
    assert {block for block in blocks for layer in layers if layer.startswith(f"{block}.")} == set(blocks)


@pytest.mark.parametrize(("name", "millions", "origin", "with_classifier"), PUBLISHED)
def test_parameters_as_published(name: str, millions: str, origin: str, with_classifier: bool) -> None:
    record = find_backbone(name)
    assert record.parameters is not None and record.features is not None
    classifier = CLASSES * (record.features + 1) if with_classifier else 0
    digits, _, exponent = millions.partition("e")
    last_digit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    assert abs((record.parameters + classifier) / 1e6 - float(millions)) <= last_digit / 2 + 1e-9, origin


def architectures() -> list[str]:
    """One name per network that fits a small machine."""
    seen: dict[str, str] = {}
    for name in list_backbones():
        record = find_backbone(name)
        seen.setdefault(json.dumps([record.timm, record.timm_kwargs, record.input_size], sort_keys=True), name)
    return [name for name in seen.values() if (find_backbone(name).parameters or 0) <= LARGEST_REAL]


@pytest.mark.parametrize("name", architectures())
def test_full_size_forward(name: str) -> None:
    """Real numbers through the whole network. Fresh and larger ones would take longer to draw than to use."""
    record = find_backbone(name)
    backbone: Any = empty_backbone(record).eval()
    noise = torch.randn(1 << 20, generator=generator())
    with torch.no_grad():
        for parameter in backbone.parameters():
            fill(parameter, noise)
        features = pool_features(backbone, image(record, "cpu"), record.pooling)
    assert features.shape == (1, record.features)
    assert bool(torch.isfinite(features).all())
    assert float(features.std()) > 0


def fill(parameter: Tensor, noise: Tensor) -> None:
    """Noise that keeps the scale of what passes through, the same over and over."""
    flat = parameter.view(-1)
    for start in range(0, len(flat), len(noise)):
        part = flat[start : start + len(noise)]
        part.copy_(noise[: len(part)])
    flat.div_(parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 10)
