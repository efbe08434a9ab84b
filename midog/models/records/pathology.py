"""Backbones trained on pathology slides. Data only; the weights are gated and never shipped.

Sources: the models' own cards and configuration files on the Hugging Face hub (UNI: Chen et al., Nature Medicine 2024;
Virchow: Vorontsov et al., Nature Medicine 2024; Virchow2: Zimmermann et al. 2024).
"""

from __future__ import annotations

from typing import Any

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
VIT_TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")

# Both Virchows: ViT-H/14 whose MLP is a packed SwiGLU (hence SiLU and the odd ratio); features are CLS and patch mean.
VIRCHOW = {
    **IMAGENET,
    "timm": "vit_huge_patch14_224",
    "file": "pytorch_model.bin",
    "gated": True,
    "input_size": 224,
    "patch": 14,
    "pooling": "cls+mean",
    "features": 2560,
    "lora_targets": VIT_TARGETS,
}
VIRCHOW_KWARGS = {
    "img_size": 224,
    "init_values": 1e-5,
    "mlp_ratio": 5.3375,
    "global_pool": "",
    "dynamic_img_size": True,
    "mlp_layer": "SwiGLUPacked",
    "act_layer": "SiLU",
}

RECORDS: tuple[dict[str, Any], ...] = (
    {
        **IMAGENET,
        "name": "uni",
        "timm": "vit_large_patch16_224",
        "source": "MahmoodLab/UNI",
        "file": "pytorch_model.bin",
        "licence": "CC-BY-NC-ND-4.0",
        "gated": True,
        "parameters": 303_350_784,
        "features": 1024,
        "input_size": 224,
        "patch": 16,
        "interpolation": "bilinear",
        "prefix_tokens": 1,
        "pooling": "cls",
        "timm_kwargs": {"img_size": 224, "patch_size": 16, "init_values": 1e-5, "dynamic_img_size": True},
        "lora_targets": VIT_TARGETS,
    },
    {
        **VIRCHOW,
        "name": "virchow",
        "source": "paige-ai/Virchow",
        "licence": "Apache-2.0 with terms of use",
        "parameters": 631_229_184,
        "prefix_tokens": 1,
        "timm_kwargs": VIRCHOW_KWARGS,
    },
    {
        **VIRCHOW,
        "name": "virchow2",
        "source": "paige-ai/Virchow2",
        "licence": "CC-BY-NC-ND-4.0",
        "parameters": 631_239_424,
        "prefix_tokens": 5,  # CLS and four registers
        "timm_kwargs": {**VIRCHOW_KWARGS, "reg_tokens": 4},
    },
)
