"""Backbones trained on natural images, and the micro-models of the tests. Data only.

Each record names what `midog.models.backbones.Backbone` documents. Parameter counts are those of the network without
its classifier. timm's published checkpoints keep timm's own mean, standard deviation and interpolation.
"""

from __future__ import annotations

from typing import Any

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
VIT_TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
CONVNEXT_TARGETS = ("mlp.fc1", "mlp.fc2")

# Dequantised from Google's 8-bit TFLite files. TensorFlow pads asymmetrically, hence pad_type. No linear layers.
CORAL = {
    **HALF,
    "source": "google-coral/test_data",
    "licence": "Apache-2.0",
    "input_size": 224,
    "pooling": "avg",
    "timm_kwargs": {"pad_type": "same"},
}

MOBILENETS: tuple[dict[str, Any], ...] = (
    {
        **CORAL,
        "name": "mobilenetv2_100",
        "timm": "mobilenetv2_100",
        "file": "mobilenetv2_100.tf2ptq_in1k.safetensors",
        "sha256": "36f84a2f26a774f32bcc0bde15cac30fb4ee9d6aa40cee3a76487e585941884a",
        "parameters": 2_223_872,
        "features": 1280,
    },
    {
        **CORAL,
        "name": "mobilenetv1_100",
        "timm": "mobilenetv1_100",
        "file": "mobilenetv1_100.tfqat_in1k.safetensors",
        "sha256": "7c69738736510cd423e3123ca2a2613d0056aff7e306aafed034712c8d87efa6",
        "parameters": 3_206_976,
        "features": 1024,
    },
)


def _convnextv2(size: str, tag: str, parameters: int, features: int) -> dict[str, Any]:
    return {
        **IMAGENET,
        "name": f"convnextv2_{size}",
        "timm": f"convnextv2_{size}",
        "source": f"timm/convnextv2_{size}.{tag}",
        "file": "model.safetensors",
        "licence": "CC-BY-NC-4.0",
        "parameters": parameters,
        "features": features,
        "input_size": 224,
        "pooling": "avg",
        # timm builds the small ones with 1x1 convolutions: the same numbers, but only linear layers take adapters.
        "timm_kwargs": {"conv_mlp": False},
        "lora_targets": CONVNEXT_TARGETS,
    }


CONVNEXTS: tuple[dict[str, Any], ...] = (
    _convnextv2("atto", "fcmae_ft_in1k", 3_387_400, 320),
    _convnextv2("femto", "fcmae_ft_in1k", 4_848_240, 384),
    _convnextv2("pico", "fcmae_ft_in1k", 8_553_280, 512),
    _convnextv2("nano", "fcmae_ft_in22k_in1k", 14_982_800, 640),
    _convnextv2("tiny", "fcmae_ft_in22k_in1k", 27_866_496, 768),
    _convnextv2("base", "fcmae_ft_in22k_in1k", 87_692_800, 1024),
    _convnextv2("large", "fcmae_ft_in22k_in1k", 196_419_840, 1536),
)


def _vit(size: str, tag: str, parameters: int, features: int) -> dict[str, Any]:
    return {
        **HALF,
        "name": f"vit_{size}_patch16_224",
        "timm": f"vit_{size}_patch16_224",
        "source": f"timm/vit_{size}_patch16_224.{tag}",
        "file": "model.safetensors",
        "licence": "Apache-2.0",
        "parameters": parameters,
        "features": features,
        "input_size": 224,
        "patch": 16,
        "prefix_tokens": 1,
        "pooling": "cls",
        "timm_kwargs": {"dynamic_img_size": True},
        "lora_targets": VIT_TARGETS,
    }


def _dinov2(size: str, parameters: int, features: int) -> dict[str, Any]:
    # The position table is made for 518 px; the card's preprocessing uses 224 px, and so do we: it is resampled.
    return {
        **IMAGENET,
        "name": f"vit_{size}_patch14_dinov2",
        "timm": f"vit_{size}_patch14_dinov2",
        "source": f"timm/vit_{size}_patch14_dinov2.lvd142m",
        "file": "model.safetensors",
        "licence": "Apache-2.0",
        "parameters": parameters,
        "features": 2 * features,
        "input_size": 224,
        "patch": 14,
        "prefix_tokens": 1,
        "pooling": "cls+mean",
        "timm_kwargs": {"dynamic_img_size": True},
        "lora_targets": VIT_TARGETS,
    }


VITS: tuple[dict[str, Any], ...] = (
    _vit("tiny", "augreg_in21k_ft_in1k", 5_524_416, 192),
    _vit("small", "augreg_in21k_ft_in1k", 21_665_664, 384),
    _vit("base", "augreg2_in21k_ft_in1k", 85_798_656, 768),
    _dinov2("small", 22_056_192, 384),
    _dinov2("base", 86_579_712, 768),
)

# Seconds of training on a processor: for tests and demonstrations, never for results.
MICRO: tuple[dict[str, Any], ...] = (
    {
        **HALF,
        "name": "test_vit",
        "timm": "test_vit",
        "source": "timm/test_vit.r160_in1k",
        "file": "model.safetensors",
        "licence": "Apache-2.0",
        "parameters": 306_240,
        "features": 64,
        "input_size": 160,
        "patch": 16,
        "prefix_tokens": 1,
        "pooling": "cls",
        "timm_kwargs": {"dynamic_img_size": True},
        "lora_targets": VIT_TARGETS,
    },
    {
        # A ConvNeXt V2 with the depths and widths of timm's smallest ConvNeXt.
        **HALF,
        "name": "test_convnextv2",
        "timm": "convnextv2_atto",
        "licence": "Apache-2.0",
        "parameters": 209_984,
        "features": 64,
        "input_size": 160,
        "pooling": "avg",
        "timm_kwargs": {"depths": [1, 2, 4, 2], "dims": [24, 32, 48, 64], "conv_mlp": False},
        "lora_targets": CONVNEXT_TARGETS,
    },
    {
        **IMAGENET,
        "name": "test_efficientnet",
        "timm": "test_efficientnet",
        "source": "timm/test_efficientnet.r160_in1k",
        "file": "model.safetensors",
        "licence": "Apache-2.0",
        "parameters": 99_196,
        "features": 256,
        "input_size": 160,
        "pooling": "avg",
    },
)

RECORDS = (*MOBILENETS, *CONVNEXTS, *VITS, *MICRO)
