from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from midog.errors import UsageError
from midog.models.backbones import Backbone, find_backbone
from midog.models.build import build_backbone
from midog.models.classifier import Network, build_classifier, fold_state, pretrained_state
from midog.models.heads.linear import pool_features
from midog.models.tuning import (
    Frozen,
    Full,
    Last,
    Lora,
    adapted_layers,
    apply_tuning,
    merge_adapter,
    plain_name,
    trained_names,
)
from midog.training.optimise import trained_parameters

MICRO: dict[str, Backbone] = {
    "vit": find_backbone("test_vit"),
    "vit, mean of patches": find_backbone({"timm": "test_vit2", "timm_kwargs": {"init_values": 1.0}}),
    "vit, registers": find_backbone({"timm": "test_vit3", "timm_kwargs": {"init_values": 1.0}}),
    "vit, packed SwiGLU": find_backbone(
        {"timm": "test_vit", "timm_kwargs": {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "mlp_ratio": 5.34375}}
    ),
    "dinov3": find_backbone(
        {
            "timm": "vit_small_patch16_dinov3",
            "timm_kwargs": {"embed_dim": 48, "depth": 3, "num_heads": 3, "init_values": 1.0},
        }
    ),
    "convnext": find_backbone({"timm": "test_convnext", "timm_kwargs": {"ls_init_value": 1.0}}),
    "convnextv2": find_backbone("test_convnextv2"),
}


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(name)


@pytest.mark.parametrize(
    ("name", "rank"), [("virchow2", 8), ("vit_tiny_patch16_224", 1), ("convnextv2_atto", 3), ("test_convnextv2", 8)]
)
def test_trainable_adapters_are_the_sum_over_layers(name: str, rank: int) -> None:
    record, backbone = find_backbone(name), on_meta(name)
    layers = adapted_layers(backbone, Lora(rank=rank), record)
    expected = sum(rank * (layer.in_features + layer.out_features) for layer in layers.values())
    apply_tuning(backbone, Lora(rank=rank), record)
    assert sum(parameter.numel() for parameter in trained_parameters(backbone).values()) == expected
    assert expected > 0


def test_known_count_of_vit_base() -> None:
    """12 blocks · 8 · (qkv 768+2304, proj 768+768, fc1 768+3072, fc2 3072+768); patch_embed.proj is no target."""
    backbone = on_meta("vit_base_patch16_224")
    apply_tuning(backbone, Lora(rank=8), find_backbone("vit_base_patch16_224"))
    assert sum(parameter.numel() for parameter in trained_parameters(backbone).values()) == 1_179_648
    assert isinstance(backbone.patch_embed.proj, nn.Conv2d)


def test_swiglu_layers_count_as_they_are() -> None:
    layers = adapted_layers(on_meta("virchow2"), Lora(), find_backbone("virchow2"))
    first = layers["blocks.0.mlp.fc1"], layers["blocks.0.mlp.fc2"]
    assert [(layer.in_features, layer.out_features) for layer in first] == [(1280, 6832), (3416, 1280)]
    assert len(layers) == 4 * 32


def test_a_bare_suffix_means_linear_layers_only() -> None:
    layers = adapted_layers(on_meta("test_vit"), Lora(targets=("proj",)), find_backbone("test_vit"))
    assert layers
    assert all(name.endswith("attn.proj") for name in layers)
    with pytest.raises(UsageError, match="unknown LoRA target"):
        adapted_layers(on_meta("test_vit"), Lora(targets=("oj",)), find_backbone("test_vit"))


def test_targets_that_match_nothing_give_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean attn\.qkv") as caught:
        adapted_layers(on_meta("test_vit"), Lora(targets=("attn.proj", "attn.qvk")), find_backbone("test_vit"))
    assert "attn.qvk" in caught.value.problem
    with pytest.raises(UsageError, match="no linear layers"):
        adapted_layers(on_meta("mobilenetv2_100"), Lora(), find_backbone("mobilenetv2_100"))


def test_a_rank_above_the_width_is_refused() -> None:
    with pytest.raises(UsageError, match="exceeds the width") as caught:
        adapted_layers(on_meta("test_vit"), Lora(rank=65), find_backbone("test_vit"))
    assert any("blocks.0.attn.qkv: 64 to 192" in line for line in caught.value.details)


@pytest.mark.parametrize(
    ("name", "blocks", "some"),
    [
        ("test_vit", 2, {"blocks.5.attn.qkv.weight", "blocks.4.norm1.bias", "norm.weight"}),
        ("test_convnextv2", 1, {"stages.3.blocks.0.mlp.fc1.weight", "head.norm.bias"}),
        ("mobilenetv2_100", 1, {"blocks.6.0.conv_pw.weight", "conv_head.weight", "bn2.bias"}),
    ],
)
def test_last_blocks_are_the_last(name: str, blocks: int, some: set[str]) -> None:
    backbone = on_meta(name)
    names = trained_names(backbone, Last(blocks=blocks))
    assert some <= names
    assert not any(
        key.startswith(("patch_embed", "stem", "conv_stem", "cls_token", "blocks.0", "stages.0")) for key in names
    )
    apply_tuning(backbone, Last(blocks=blocks), find_backbone(name))
    assert {key for key, parameter in backbone.named_parameters() if parameter.requires_grad} == names
    with pytest.raises(UsageError, match=r"tune.blocks is 99"):
        trained_names(backbone, Last(blocks=99))


def test_full_trains_all_and_head_nothing() -> None:
    backbone, record = on_meta("test_vit"), find_backbone("test_vit")
    apply_tuning(backbone, Frozen(), record)
    assert not trained_parameters(backbone)
    apply_tuning(backbone, Full(), record)
    assert sum(parameter.numel() for parameter in trained_parameters(backbone).values()) == record.parameters


@pytest.mark.parametrize(
    "wrong",
    [{"rank": 0}, {"alpha": 0}, {"alpha": float("nan")}, {"dropout": 1.0}, {"dropout": -0.1}, {"targets": ()}],
)
def test_settings_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"tune.{next(iter(wrong))}"):
        Lora(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"tune\.blocks"):
        Last(blocks=0)


def test_scales() -> None:
    assert Lora("lora", rank=4, alpha=16).scale == 4
    assert Lora("rslora", rank=4, alpha=16).scale == 8
    assert Lora("dora", rank=4, alpha=16).scale == 4


def test_plain_names() -> None:
    assert plain_name("blocks.0.attn.qkv.base_layer.weight") == "blocks.0.attn.qkv.weight"
    assert plain_name("blocks.0.attn.qkv.lora_A.default.weight") == "blocks.0.attn.qkv.lora_A"
    assert plain_name("blocks.0.attn.qkv.lora_magnitude_vector.default.weight") == "blocks.0.attn.qkv.magnitude"


@given(
    kind=st.sampled_from(["lora", "rslora", "dora"]),
    rank=st.integers(1, 4),
    alpha=st.sampled_from([1.0, 4.0, 16.0, 2.5]),
    seed=st.integers(0, 1000),
)
def test_a_merged_weight_is_pefts_own_forward(kind: str, rank: int, alpha: float, seed: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tune = Lora(kind, rank=rank, alpha=alpha)  # type: ignore[arg-type]
    network = nn.Sequential(nn.Linear(7, 5)).double()
    weight, bias = network[0].weight.detach().clone(), network[0].bias.detach().clone()
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules="0", use_rslora=kind == "rslora", use_dora=kind == "dora"
    )
    inject_adapter_in_model(config, network)
    network = network.double().eval()
    adapter = {"lora_A": normal(rank, 7), "lora_B": normal(5, rank)}
    with torch.no_grad():
        network[0].lora_A["default"].weight.copy_(adapter["lora_A"])
        network[0].lora_B["default"].weight.copy_(adapter["lora_B"])
        if kind == "dora":
            adapter["magnitude"] = normal(5).abs() + 0.1
            network[0].lora_magnitude_vector["default"].weight.copy_(adapter["magnitude"])
        x = normal(3, 7)
        expected = network(x)
        merge_adapter(weight, adapter, tune)
        found = nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", MICRO)
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@torch.no_grad()
def test_merged_networks_are_pefts_own_forward(name: str, kind: str) -> None:
    """Features of the network that trained, peft's layers inside, against timm's own with merged weights."""
    tune = Lora(kind, rank=4, alpha=8)  # type: ignore[arg-type]
    network = Network(MICRO[name], "random", tune=tune)
    adapted, layers = build_classifier(network).eval(), adapted_layers(build_backbone(MICRO[name]), tune, MICRO[name])
    trained = trained_parameters(adapted.backbone)
    sizes = sum(4 * (layer.in_features + layer.out_features) for layer in layers.values())
    magnitudes = sum(layer.out_features for layer in layers.values()) if kind == "dora" else 0
    assert sum(value.numel() for value in trained.values()) == sizes + magnitudes
    generator = torch.Generator().manual_seed(0)
    for key, value in trained.items():
        value.add_(0.2 * torch.randn(value.shape, generator=generator) * (1 if "lora" in key else value))
    plain, state = build_backbone(MICRO[name]).eval(), fold_state(adapted)
    plain.load_state_dict(pretrained_state(network))
    x = torch.randn(2, 3, 64, 64, generator=generator)
    before = pool_features(plain, x, MICRO[name].pooling)
    for module in layers:
        parts = {part: state[f"backbone.{module}.{part}"].float() for part in ("lora_A", "lora_B")}
        if kind == "dora":
            parts["magnitude"] = state[f"backbone.{module}.magnitude"].float()
        merge_adapter(plain.get_parameter(f"{module}.weight"), parts, tune)
    found = pool_features(plain, x, MICRO[name].pooling)
    expected = pool_features(adapted.backbone, x, MICRO[name].pooling)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (expected - before).abs().max() > 0.1, "the adapters must show"


def test_dora_rows_have_the_learned_length() -> None:
    """Closed form, without peft: rows of the merged weight point along W₀ + s·B·A and are `magnitude` long."""
    weight, a, b = torch.eye(2), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]])
    adapter = {"lora_A": a, "lora_B": b, "magnitude": torch.tensor([3.0, 2.0])}
    merge_adapter(weight, adapter, Lora("dora", rank=1, alpha=1))
    root = math.sqrt(2)
    torch.testing.assert_close(weight, torch.tensor([[3.0, 0.0], [2 / root, 2 / root]]))
