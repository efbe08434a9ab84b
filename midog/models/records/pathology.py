"""Backbones trained on pathology slides. Data only; no weights are shipped.

Each record names what `midog.models.backbones.Backbone` documents. `parameters` counts the network as built here: what
the published file holds, less what no network here has, which is the mask token of DINOv2's training, the position of
the CLS token where there are registers (added into the token), and everything outside `prefix`.

Sources: the models' own cards, configuration and loading code on the Hugging Face hub and GitHub; what could only be
learnt from code that loads them, or not at all, is said at the record. Revisions are commits that several independent
projects pin; `main` where we know none.
"""

from __future__ import annotations

from typing import Any

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
BIOPTIMUS = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}
HIBOU = {"mean": (0.7068, 0.5755, 0.722), "std": (0.195, 0.2316, 0.1816)}
LUNIT = {"mean": (0.70322989, 0.53606487, 0.66096631), "std": (0.21716536, 0.26081574, 0.20723464)}
GENBIO = {"mean": (0.697, 0.575, 0.728), "std": (0.188, 0.240, 0.187)}

VIT_TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
NC_ND = "CC-BY-NC-ND-4.0"
OWKIN = "Owkin non-commercial licence"
KAIKO = "Kaiko Non-Commercial Public License 1"
EXAONE = "EXAONEPath AI Model License 1.0-NC"
RESIZABLE = {"dynamic_img_size": True}
SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}

# A plain ViT: 224 px, CLS token, one file that asks for no consent. Each record overrides what differs.
VIT = {
    **IMAGENET,
    "file": "model.safetensors",
    "input_size": 224,
    "prefix_tokens": 1,
    "pooling": "cls",
    "timm_kwargs": RESIZABLE,
    "lora_targets": VIT_TARGETS,
}

# ── Mahmood Lab: Chen et al., Nature Medicine 2024; Lu et al., Nature Medicine 2024 (CONCH) ──────────────────────────

UNI_KWARGS = {"img_size": 224, "patch_size": 16, "init_values": 1e-5, "dynamic_img_size": True}

MAHMOOD: tuple[dict[str, Any], ...] = (
    {
        **VIT,
        "name": "uni",
        "timm": "vit_large_patch16_224",
        "source": "MahmoodLab/UNI",
        "file": "pytorch_model.bin",
        "licence": NC_ND,
        "gated": True,
        "parameters": 303_350_784,
        "features": 1024,
        "patch": 16,
        "interpolation": "bilinear",
        "timm_kwargs": UNI_KWARGS,
    },
    {
        # The card builds it from timm's ViT-g with these arguments; 681 M, and this count in its file.
        **VIT,
        "name": "uni2_h",
        "timm": "vit_giant_patch14_224",
        "source": "MahmoodLab/UNI2-h",
        "revision": "d517a8dd47902dd7c308b3c36f63bce47e7b9a43",
        "file": "pytorch_model.bin",
        "licence": NC_ND,
        "gated": True,
        "parameters": 681_394_176,
        "features": 1536,
        "patch": 14,
        "interpolation": "bilinear",
        "prefix_tokens": 9,  # CLS and eight registers
        "timm_kwargs": {
            **UNI_KWARGS,
            **SWIGLU,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "embed_dim": 1536,
            "mlp_ratio": 5.33334,
            "no_embed_class": True,
            "reg_tokens": 8,
        },
    },
    {
        # The trunk of the image tower. Its authors probe the 512 numbers of an attention pooler that stands on it and
        # that timm does not have: the trunk's CLS token is our choice.
        **VIT,
        **CLIP,
        "name": "conch",
        "timm": "vit_base_patch16_224",
        "source": "MahmoodLab/conch",
        "revision": "f9ca9f877171a28ade80228fb195ac5d79003357",
        "file": "pytorch_model.bin",
        "licence": NC_ND,
        "gated": True,
        "parameters": 86_250_240,
        "features": 768,
        "input_size": 448,
        "patch": 16,
        "timm_kwargs": {"img_size": 448, "dynamic_img_size": True},
        "prefix": "visual.trunk.",
    },
)

# ── Paige: Vorontsov et al., Nature Medicine 2024; Zimmermann et al. 2024 ────────────────────────────────────────────

# Both Virchows: ViT-H/14 whose MLP is a packed SwiGLU (hence SiLU and the odd ratio); features are CLS and patch mean.
VIRCHOW = {
    **VIT,
    "timm": "vit_huge_patch14_224",
    "file": "pytorch_model.bin",
    "gated": True,
    "patch": 14,
    "pooling": "cls+mean",
    "features": 2560,
}
VIRCHOW_KWARGS = {
    "img_size": 224,
    "init_values": 1e-5,
    "mlp_ratio": 5.3375,
    "global_pool": "",
    "dynamic_img_size": True,
    **SWIGLU,
}

PAIGE: tuple[dict[str, Any], ...] = (
    {
        **VIRCHOW,
        "name": "virchow",
        "source": "paige-ai/Virchow",
        "licence": "Apache-2.0 with terms of use",
        "parameters": 631_229_184,
        "timm_kwargs": VIRCHOW_KWARGS,
    },
    {
        **VIRCHOW,
        "name": "virchow2",
        "source": "paige-ai/Virchow2",
        "licence": NC_ND,
        "parameters": 631_239_424,
        "prefix_tokens": 5,  # CLS and four registers
        "timm_kwargs": {**VIRCHOW_KWARGS, "reg_tokens": 4},
    },
)

# ── Bioptimus ────────────────────────────────────────────────────────────────────────────────────────────────────────

# ViT-g/14, SwiGLU, four registers. The card gives 1.1 B and no interpolation: bicubic is timm's own for the network.
H_OPTIMUS = {
    **VIT,
    **BIOPTIMUS,
    "timm": "vit_giant_patch14_reg4_dinov2",
    "file": "pytorch_model.bin",
    "gated": True,
    "parameters": 1_134_774_272,
    "features": 1536,
    "patch": 14,
    "prefix_tokens": 5,
    "timm_kwargs": {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True},
}

BIOPTIMUS_MODELS: tuple[dict[str, Any], ...] = (
    {
        **H_OPTIMUS,
        "name": "h_optimus_0",
        "source": "bioptimus/H-optimus-0",
        "revision": "b145cc1e6c6b30d3251aa8b1f844e6974188a743",
        "licence": "Apache-2.0",
    },
    {
        **H_OPTIMUS,
        "name": "h_optimus_1",
        "source": "bioptimus/H-optimus-1",
        "revision": "3592cb220dec7a150c5d7813fb56e68bd57473b9",
        "licence": NC_ND,
    },
    {
        # ViT-B/14 distilled from H-optimus-0 (Filiot et al. 2025). The card offers CLS alone too; CLS beside the patch
        # mean is its classification benchmarks'.
        **VIT,
        **BIOPTIMUS,
        "name": "h0_mini",
        "timm": "vit_base_patch14_reg4_dinov2",
        "source": "bioptimus/H0-mini",
        "revision": "5b5cc0505d19ae558270045eb0df8c34df4d9609",
        "licence": NC_ND,
        "gated": True,
        "parameters": 85_739_520,
        "features": 1536,
        "patch": 14,
        "prefix_tokens": 5,
        "pooling": "cls+mean",
        "timm_kwargs": {"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.33334, "dynamic_img_size": True, **SWIGLU},
    },
)

# ── Kaiko: Aben et al. 2024; Karasikov et al. 2025 (Midnight) ────────────────────────────────────────────────────────


def _kaiko(name: str, timm: str, tag: str, parameters: int, features: int, patch: int) -> dict[str, Any]:
    # Published by Kaiko as .pth files on GitHub; the hub has a copy of each in timm's names, which asks for no consent.
    return {
        **VIT,
        **HALF,
        "name": f"kaiko_{name}",
        "timm": timm,
        "source": f"1aurent/{tag}.kaiko_ai_towards_large_pathology_fms",
        "licence": KAIKO,
        "parameters": parameters,
        "features": features,
        "patch": patch,
        "interpolation": "bilinear",
    }


KAIKO_MODELS: tuple[dict[str, Any], ...] = (
    _kaiko("vits16", "vit_small_patch16_224", "vit_small_patch16_224", 21_665_664, 384, 16),
    _kaiko("vits8", "vit_small_patch8_224", "vit_small_patch8_224", 21_670_272, 384, 8),
    _kaiko("vitb16", "vit_base_patch16_224", "vit_base_patch16_224", 85_798_656, 768, 16),
    _kaiko("vitb8", "vit_base_patch8_224", "vit_base_patch8_224", 85_807_872, 768, 8),
    {
        # The position table is made for 518 px (the size of the file shows it); used at 224 px.
        **_kaiko("vitl14", "vit_large_patch14_reg4_dinov2", "vit_large_patch14_reg4_224", 304_370_688, 1024, 14),
        "prefix_tokens": 5,
    },
    {
        # ViT-g/14 that started from DINOv2's weights: its position table is for 518 px, the card uses 224 px, and the
        # authors' code resamples it without antialiasing, timm with. 1,136,480,768 in the file, with the mask token.
        **VIT,
        **HALF,
        "name": "midnight_12k",
        "timm": "vit_giant_patch14_dinov2",
        "source": "kaiko-ai/midnight",
        "revision": "adc6b15679c981cce6f9b018bbad09d16eeeda9f",
        "licence": "MIT",
        "parameters": 1_136_479_232,
        "features": 3072,
        "patch": 14,
        "interpolation": "bilinear",
        "pooling": "cls+mean",
        "layout": "transformers",
    },
)

# ── HistAI: Nechaev et al. 2024 ──────────────────────────────────────────────────────────────────────────────────────


def _hibou(size: str, source: str, parameters: int, features: int, hidden: int) -> dict[str, Any]:
    # DINOv2 with four registers and SwiGLU, `hidden` wide. What we read disagrees on whether the files ask for consent.
    return {
        **VIT,
        **HIBOU,
        "name": f"hibou_{size[0]}",
        "timm": f"vit_{size}_patch14_reg4_dinov2",
        "source": source,
        "licence": "Apache-2.0",
        "gated": True,
        "parameters": parameters,
        "features": features,
        "patch": 14,
        "prefix_tokens": 5,
        "timm_kwargs": {"img_size": 224, "mlp_ratio": 2 * hidden / features, "dynamic_img_size": True, **SWIGLU},
        "layout": "transformers",
    }


# 85,741,056 and 303,659,264 in the files: with the mask token and the position of the CLS token.
HIBOUS: tuple[dict[str, Any], ...] = (
    _hibou("base", "histai/hibou-b", 85_739_520, 768, 2048),
    _hibou("large", "histai/hibou-L", 303_657_216, 1024, 2736),
)

# ── Lunit: Kang et al., CVPR 2023 ────────────────────────────────────────────────────────────────────────────────────


def _lunit(patch: int, parameters: int) -> dict[str, Any]:
    # Trained with DINO. A copy of Lunit's GitHub release in timm's names; the interpolation is not published.
    return {
        **VIT,
        **LUNIT,
        "name": f"lunit_vits{patch}",
        "timm": f"vit_small_patch{patch}_224",
        "source": f"1aurent/vit_small_patch{patch}_224.lunit_dino",
        "licence": "Lunit public licence (non-commercial)",
        "parameters": parameters,
        "features": 384,
        "patch": patch,
    }


# ── others ───────────────────────────────────────────────────────────────────────────────────────────────────────────

OTHERS: tuple[dict[str, Any], ...] = (
    {
        # Xu et al., Nature 2024: the tile encoder, DINOv2's ViT-g with patches of 16 px. The card resizes to 256 px and
        # keeps the central 224; we resize to 224, which leaves nothing out.
        **VIT,
        "name": "prov_gigapath",
        "timm": "vit_giant_patch14_dinov2",
        "source": "prov-gigapath/prov-gigapath",
        "revision": "64f9e26c15019f2d4f6d9113c6822f88bb16b01b",
        "file": "pytorch_model.bin",
        "licence": "Apache-2.0 with terms of use",
        "gated": True,
        "parameters": 1_134_953_984,
        "features": 1536,
        "patch": 16,
        "timm_kwargs": {
            "img_size": 224,
            "patch_size": 16,
            "embed_dim": 1536,
            "depth": 40,
            "num_heads": 24,
            "mlp_ratio": 5.33334,
            "init_values": 1e-5,
            "dynamic_img_size": True,
        },
    },
    {
        # Filiot et al. 2024: DINOv2's ViT-L/16 with a plain MLP. 303,351,808 in the file, with the mask token.
        **VIT,
        "name": "phikon_v2",
        "timm": "vit_large_patch16_224",
        "source": "owkin/phikon-v2",
        "revision": "2ae989a9c40cffaa27f0a6cb29cc94d1d6f9a5fd",
        "licence": OWKIN,
        "parameters": 303_350_784,
        "features": 1024,
        "patch": 16,
        "interpolation": "bilinear",
        "timm_kwargs": UNI_KWARGS,
        "layout": "transformers",
    },
    {
        # Ma et al., Nature Biomedical Engineering 2025: DINOv2's ViT-L/14 at 224 px, from a training checkpoint.
        **VIT,
        "name": "gpfm",
        "timm": "vit_large_patch14_dinov2",
        "source": "majiabo/GPFM",
        "file": "GPFM.pth",
        "licence": "CC-BY-NC-4.0",
        "parameters": 303_227_904,
        "features": 1024,
        "patch": 14,
        "timm_kwargs": {"img_size": 224, "dynamic_img_size": True},
        "layout": "dinov2",
        "prefix": "backbone.",
    },
    {
        # Zhou et al. 2024. The image tower, which starts from UNI. Its authors compare images with text through a head
        # of two layers that stands on the CLS token and that is left out here.
        **VIT,
        "name": "keep",
        "timm": "vit_large_patch16_224",
        "source": "Astaxanthin/KEEP",
        "licence": "MIT",
        "parameters": 303_350_784,
        "features": 1024,
        "patch": 16,
        "timm_kwargs": UNI_KWARGS,
        "prefix": "visual.",
    },
    {
        # Kapse et al. 2026: DINOv3's architecture for one channel; red, green and blue go through it one by one and
        # their CLS tokens stand side by side. Its own code rotates queries and keys in bfloat16, timm in float32.
        **VIT,
        **GENBIO,
        "name": "genbio_pathfm",
        "timm": "vit_7b_patch16_dinov3",
        "source": "genbio-ai/genbio-pathfm",
        "file": "model.pth",
        "licence": "GenBio AI Community License",
        "parameters": 1_133_686_784,
        "features": 3 * 1536,
        "patch": 16,
        "interpolation": "bilinear",
        "prefix_tokens": 5,
        "timm_kwargs": {
            "img_size": 224,
            "in_chans": 1,
            "embed_dim": 1536,
            "num_heads": 24,
            "mlp_ratio": 8 / 3,
            "norm_layer": "LayerNorm",  # timm's own: epsilon 1e-6
        },
        "lora_targets": ("attn.qkv", "attn.proj", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2"),
        "layout": "dinov3",
    },
    {
        # Pyeon et al. 2025, the first of three stages. Trained on 128 µm at 0.5 µm/px; our patches span 32 µm. The
        # name of its file is not confirmed; derived models must carry a name that begins with EXAONEPath.
        **VIT,
        "name": "exaone_path_2",
        "timm": "vit_base_patch16_224",
        "source": "LGAI-EXAONE/EXAONE-Path-2.0",
        "licence": EXAONE,
        "gated": True,
        "parameters": 85_844_736,
        "features": 768,
        "input_size": 256,
        "patch": 16,
        "timm_kwargs": {"img_size": 256, "dynamic_img_size": True},
        "prefix": "model_first_stg.",
    },
)

RECORDS = (
    *MAHMOOD,
    *PAIGE,
    *BIOPTIMUS_MODELS,
    *KAIKO_MODELS,
    *HIBOUS,
    _lunit(8, 21_670_272),
    _lunit(16, 21_665_664),
    *OTHERS,
)

DERIVED_NAMES = {EXAONE: "EXAONEPath"}
"""What the name of a model derived from weights under a licence must begin with, low-rank adapters included."""
BOUND = {EXAONE: "research only, also for what it answers; it may be passed on only together with its agreement"}
"""Licences under which a bundle is made only by someone who says that they keep to these terms."""
