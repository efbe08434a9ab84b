"""Backbones trained on natural images, and the micro-models of the tests. Data only.

Each record names what `midog.models.backbones.Backbone` documents. Parameter counts are those of the network without
its classifier. timm's published checkpoints keep timm's own mean, standard deviation and interpolation.

Sources: timm's registered configurations (hub address, licence, native size, mean, standard deviation, interpolation)
and, for the pooling, the models' own cards and code.
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
    # Tuned on ImageNet-22k at 384 and 512 px only. `image: {size: 224}` takes a third of the work.
    {**_convnextv2("huge", "fcmae_ft_in22k_in1k_384", 657_472_640, 2816), "input_size": 384},
)


def _convnext(name: str, size: str, tag: str, licence: str, parameters: int, features: int) -> dict[str, Any]:
    """Version 1. DINOv3's are the same networks: the mean over positions, then the norm, is their authors' feature."""
    return {
        **IMAGENET,
        "name": name,
        "timm": f"convnext_{size}",
        "source": f"timm/convnext_{size}.{tag}",
        "file": "model.safetensors",
        "licence": licence,
        "parameters": parameters,
        "features": features,
        "input_size": 224,
        "pooling": "avg",
        "lora_targets": CONVNEXT_TARGETS,
    }


# timm's copies ask for no consent; Meta's own repositories do. The licence is the same.
DINOV3_LICENCE = "DINOv3 License"
DINOV3_TAG = "dinov3_lvd1689m"

CONVNEXTS_V1: tuple[dict[str, Any], ...] = (
    _convnext("convnext_small", "small", "fb_in22k_ft_in1k", "Apache-2.0", 49_454_688, 768),
    _convnext("convnext_base", "base", "fb_in22k_ft_in1k", "Apache-2.0", 87_566_464, 1024),
    _convnext("convnext_tiny_dinov3", "tiny", DINOV3_TAG, DINOV3_LICENCE, 27_820_128, 768),
    _convnext("convnext_small_dinov3", "small", DINOV3_TAG, DINOV3_LICENCE, 49_454_688, 768),
    _convnext("convnext_base_dinov3", "base", DINOV3_TAG, DINOV3_LICENCE, 87_566_464, 1024),
    _convnext("convnext_large_dinov3", "large", DINOV3_TAG, DINOV3_LICENCE, 196_230_336, 1536),
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


def _dinov3(size: str, parameters: int, features: int, mlp: tuple[str, ...]) -> dict[str, Any]:
    # Rotary positions take any size. The authors' linear classifier stands on CLS beside the patch mean.
    return {
        **IMAGENET,
        "name": f"vit_{size}_patch16_dinov3",
        "timm": f"vit_{size}_patch16_dinov3",
        "source": f"timm/vit_{size}_patch16_dinov3.lvd1689m",
        "file": "model.safetensors",
        "licence": DINOV3_LICENCE,
        "parameters": parameters,
        "features": 2 * features,
        "input_size": 256,
        "patch": 16,
        "prefix_tokens": 5,  # CLS and four registers
        "pooling": "cls+mean",
        "lora_targets": ("attn.qkv", "attn.proj", *mlp),
    }


VITS: tuple[dict[str, Any], ...] = (
    _vit("tiny", "augreg_in21k_ft_in1k", 5_524_416, 192),
    _vit("small", "augreg_in21k_ft_in1k", 21_665_664, 384),
    _vit("base", "augreg2_in21k_ft_in1k", 85_798_656, 768),
    _vit("large", "augreg_in21k_ft_in1k", 303_301_632, 1024),
    _dinov2("small", 22_056_192, 384),
    _dinov2("base", 86_579_712, 768),
    _dinov2("large", 304_367_616, 1024),
    _dinov2("giant", 1_136_479_232, 1536),
    _dinov3("large", 303_079_424, 1024, ("mlp.fc1", "mlp.fc2")),
    # SwiGLU, its gate a layer of its own.
    _dinov3("huge_plus", 840_509_440, 1280, ("mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")),
)

OTHERS: tuple[dict[str, Any], ...] = (
    {
        **IMAGENET,
        "name": "swin_base_patch4_window7_224",
        "timm": "swin_base_patch4_window7_224",
        "source": "timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k",
        "file": "model.safetensors",
        "licence": "MIT",
        "parameters": 86_743_224,
        "features": 1024,
        "input_size": 224,
        "patch": 4,
        "pooling": "avg",
        # Other sizes are padded to whole windows; at 224 px nothing changes.
        "timm_kwargs": {"strict_img_size": False},
        "lora_targets": VIT_TARGETS,
    },
    {
        # Its attention is made of convolutions: no linear layers for adapters but one in the head.
        **IMAGENET,
        "name": "efficientvit_l2",
        "timm": "efficientvit_l2",
        "source": "timm/efficientvit_l2.r224_in1k",
        "file": "model.safetensors",
        "licence": "Apache-2.0",
        "parameters": 60_506_016,
        "features": 3200,
        "input_size": 224,
        "pooling": "avg",
    },
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

RECORDS = (*MOBILENETS, *CONVNEXTS, *CONVNEXTS_V1, *VITS, *OTHERS, *MICRO)
