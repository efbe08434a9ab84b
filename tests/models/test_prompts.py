"""Prompts against timm's own register tokens, which stand in the same place in a network of one block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from midog.errors import UsageError, WeightsError
from midog.models.backbones import find_backbone
from midog.models.build import build_backbone
from midog.models.classifier import Classifier, Network, pretrained_state, save_fold
from midog.models.heads.linear import pool_features
from midog.models.inference import Inference
from midog.models.preprocess import Image
from midog.models.prompts import Prompts, insert_prompts, prompted_blocks
from midog.models.tuning import Full, Lora, apply_tuning
from midog.models.weights import TensorFile, write_tensors
from midog.recipe import load_recipe
from midog.training.optimise import trained_parameters

Train = Callable[..., Classifier]
EVA: dict[str, Any] = {"embed_dim": 48, "num_heads": 3, "img_size": 64, "init_values": 1.0}
"""DINOv3 in small: rotary positions, four registers. A usual layer scale of 1e-5 would hide what blocks do."""
BACKBONES: dict[str, dict[str, Any]] = {
    "vit": {"timm": "test_vit", "timm_kwargs": {"dynamic_img_size": True}},
    "registers": {"timm": "test_vit", "timm_kwargs": {"reg_tokens": 4, "dynamic_img_size": True}},
    "no CLS": {"timm": "test_vit2", "timm_kwargs": {"init_values": 1.0}},
    "eva": {"timm": "vit_small_patch16_dinov3", "timm_kwargs": {**EVA, "depth": 3, "dynamic_img_size": True}},
    "mixed rope": {"timm": "vit_small_patch16_rope_mixed_224", "timm_kwargs": {**EVA, "depth": 2}},
}


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> nn.Module:
    return build_backbone(BACKBONES[request.param]).eval()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def fill(backbone: nn.Module, seed: int = 0, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in prompted_blocks(backbone).values():
            prompts = block.get_parameter("prompts")
            prompts.copy_(scale * torch.randn(prompts.shape, generator=generator))


@pytest.mark.parametrize(
    ("name", "kwargs", "registers"),
    [
        ("test_vit", {"img_size": 64, "no_embed_class": True}, "reg_tokens"),
        ("vit_small_patch16_dinov3", EVA, "num_reg_tokens"),
    ],
)
@torch.no_grad()
def test_in_one_block_prompts_are_timms_registers(
    name: str, kwargs: dict[str, Any], registers: str, image: torch.Tensor
) -> None:
    wide = timm.create_model(name, num_classes=0, depth=1, **{registers: 4 + 3}, **kwargs).eval()
    narrow = timm.create_model(name, num_classes=0, depth=1, **{registers: 4}, **kwargs).eval()
    nn.init.normal_(wide.reg_token, generator=torch.Generator().manual_seed(0))
    state = wide.state_dict()
    narrow.load_state_dict({**state, "reg_token": state["reg_token"][:, :4]})
    before = narrow.forward_features(image)
    insert_prompts(narrow, 3)
    narrow.blocks[0].prompts.copy_(wide.reg_token[0, 4:])
    expected, found = wide.forward_features(image), narrow.forward_features(image)
    torch.testing.assert_close(found[:, :5], expected[:, :5], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, 5:], expected[:, 5 + 3 :], atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 1e-2


@torch.no_grad()
def test_without_prompts_it_is_the_frozen_model(backbone: nn.Module, image: torch.Tensor) -> None:
    names, before = set(backbone.state_dict()), backbone.forward_features(image)
    none = insert_prompts(backbone, 0)
    assert torch.equal(backbone.forward_features(image), before)
    none()
    remove = insert_prompts(backbone, 5)
    fill(backbone)
    assert set(backbone.state_dict()) - names == {f"{block}.prompts" for block in prompted_blocks(backbone)}
    assert (backbone.forward_features(image) - before).abs().max() > 1e-3
    remove()
    assert set(backbone.state_dict()) == names
    assert torch.equal(backbone.forward_features(image), before)


@torch.no_grad()
def test_prompts_stay_inside_their_blocks(backbone: nn.Module, image: torch.Tensor) -> None:
    """Each block works on `count` more tokens, in no order of their own; what pools sees as many as ever."""
    plain = backbone.forward_features(image).shape
    insert_prompts(backbone, 8)
    fill(backbone)
    lengths: list[int] = []
    for block in prompted_blocks(backbone).values():
        block.norm1.register_forward_hook(lambda module, inputs, output: lengths.append(inputs[0].shape[1]))
        block.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    tokens = backbone.forward_features(image)
    assert tokens.shape == plain
    assert lengths == [plain[1] + 8, plain[1]] * len(prompted_blocks(backbone))
    prefix = int(backbone.num_prefix_tokens)  # type: ignore[arg-type]
    if prefix:
        expected = torch.cat((tokens[:, 0], tokens[:, prefix:].mean(1)), dim=1)
        assert torch.equal(pool_features(backbone, image, "cls+mean"), expected)
    for block in prompted_blocks(backbone).values():
        prompts = block.get_parameter("prompts")
        prompts.copy_(prompts.flip(0))
    torch.testing.assert_close(backbone.forward_features(image), tokens, atol=1e-5, rtol=1e-5)


def test_every_blocks_prompts_learn_and_nothing_else(backbone: nn.Module, image: torch.Tensor) -> None:
    torch.manual_seed(0)  # a few hundred numbers: their spread is a matter of chance
    apply_tuning(backbone, Prompts(count=3), find_backbone("test_vit"))
    width = int(backbone.embed_dim)  # type: ignore[arg-type]
    trained = trained_parameters(backbone)
    assert {name: tuple(value.shape) for name, value in trained.items()} == {
        f"{block}.prompts": (3, width) for block in prompted_blocks(backbone)
    }
    assert 0.017 < torch.cat(list(trained.values())).std() < 0.023
    pool_features(backbone, image, "avg").sin().sum().backward()
    assert all(float(value.grad.abs().max()) > 0 for value in trained.values() if value.grad is not None)
    assert {name for name, value in backbone.named_parameters() if value.grad is not None} == set(trained)


@pytest.mark.parametrize("name", ["registers", "eva"])
def test_checkpointing_and_other_sizes(name: str) -> None:
    backbone = build_backbone(BACKBONES[name]).eval()
    apply_tuning(backbone, Prompts(count=4), find_backbone("test_vit"))
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    gradients = []
    for checkpointing in (False, True):
        backbone.set_grad_checkpointing(checkpointing)
        backbone.zero_grad()
        pool_features(backbone, x, "cls+mean").sin().sum().backward()
        gradients.append([value.grad.clone() for value in trained_parameters(backbone).values()])
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)


def test_published_count_of_uni2_h() -> None:
    """ViT-H/14 of 24 blocks, 1536 wide, with 8 registers: 24 · 8 · 1536 learned numbers."""
    with torch.device("meta"):
        kwargs = {"embed_dim": 1536, "depth": 24, "num_heads": 24, "reg_tokens": 8, "img_size": 224}
        backbone = timm.create_model("vit_huge_patch14_224", num_classes=0, **kwargs)
        apply_tuning(backbone, Prompts(count=8), find_backbone("virchow2"))
    assert sum(value.numel() for value in trained_parameters(backbone).values()) == 294_912


@pytest.mark.parametrize("name", ["test_convnextv2", "test_efficientnet", "timm/swin_tiny_patch4_window7_224"])
def test_networks_without_room_for_prompts(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
    with pytest.raises(UsageError, match="takes no prompts") as caught:
        apply_tuning(backbone, Prompts(), find_backbone("test_vit"))
    assert "lora" in caught.value.fix


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UsageError, match=r"tune\.count is 0"):
        Prompts(count=0)


def test_a_recipe_asks_for_prompts(tmp_path: Path) -> None:
    path, members = tmp_path / "mine.yaml", ["a: {tune: prompts}", "b: {tune: {kind: prompts, count: 5}}"]
    path.write_text("\n  ".join(["each: {backbone: test_vit}\nmembers:", *members]))
    loaded = load_recipe(path).members
    assert loaded["a"].tune == Prompts(count=8)
    assert loaded["b"].tune == Prompts(count=5)
    path.write_text("members: {a: {backbone: test_vit, tune: {kind: prompts, counts: 5}}}")
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    assert "did you mean count" in str(caught.value)


def test_files_of_prompts_that_do_not_fit(patches: np.ndarray, train: Train, tmp_path: Path) -> None:
    vit = Network(find_backbone("test_vit"), "random", Image(size=64), Prompts(count=4))
    good = save_fold(train(vit, patches), tmp_path / "good.safetensors")
    about, state = TensorFile(good).about, {name: TensorFile(good)[name] for name in TensorFile(good).names}
    fewer = {name: value[:3] if name.endswith("prompts") else value for name, value in state.items()}
    lacking = {name: value for name, value in state.items() if name != "backbone.blocks.2.prompts"}
    lora = {**about, "network": {**about["network"], "tune": {"kind": "lora"}}}
    convnext = Network(find_backbone("test_convnextv2"), "random", tune=Full())
    foreign = {**about, "network": {**convnext.to_dict(), "tune": {"kind": "prompts"}}}
    files = {
        write_tensors(tmp_path / "fewer.safetensors", fewer, about): "of another shape: backbone.blocks.0.prompts",
        write_tensors(tmp_path / "lacking.safetensors", lacking, about): "missing: backbone.blocks.2.prompts",
        write_tensors(tmp_path / "lora.safetensors", state, lora): "unexpected: backbone.blocks.0.prompts",
    }
    inference = Inference(vit, pretrained_state(vit))
    before = {name: value.clone() for name, value in inference.switch(good).state_dict().items()}
    for file, message in files.items():
        with pytest.raises(WeightsError, match=message):
            inference.switch(file)
        after = inference.module.state_dict()
        assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    other = write_tensors(tmp_path / "foreign.safetensors", state, foreign)
    with pytest.raises(WeightsError, match="takes no prompts"):
        Inference(convnext, pretrained_state(convnext)).switch(other)


def test_prompts_and_lora_take_turns_on_rotary_attention(patches: np.ndarray, train: Train, tmp_path: Path) -> None:
    """What a fold model's prompts changed around them is undone when the next fold model comes."""
    record = find_backbone(BACKBONES["eva"])
    tunes = (Prompts(count=4), Lora(), Prompts(count=2))
    networks = [Network(record, "random", Image(size=64), tune) for tune in tunes]
    trained = [train(network, patches) for network in networks]
    files = [save_fold(model, tmp_path / f"{i}.safetensors") for i, model in enumerate(trained)]
    inference = Inference(networks[0], pretrained_state(networks[0]))
    for turn in (0, 1, 2, 0, 2, 1, 0):
        x = trained[turn].prepare(patches)
        with torch.no_grad():
            expected, found = trained[turn](x), inference.switch(files[turn])(x)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert inference.module.backbone.blocks[0].attn.num_prefix_tokens == 5 + (4, 0, 2)[turn]
