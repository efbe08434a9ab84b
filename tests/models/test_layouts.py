"""Synthetic checkpoints under their authors' names: the names and shapes at full size, the numbers at toy size.

The forward passes below are written from the published definitions, with the published names, and know nothing of timm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from midog.errors import WeightsError
from midog.models.backbones import Backbone, find_backbone, list_backbones
from midog.models.build import build_backbone
from midog.models.heads.linear import pool_features
from midog.models.layouts import LAYOUTS, prefixes, translate
from midog.models.weights import load_pretrained

Shapes = dict[str, tuple[int, ...]]


# ── published names and shapes ────────────────────────────────────────────────────────────────────────────────────────


def linear(name: str, rows: int, columns: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (rows, columns), **({f"{name}.bias": (rows,)} if bias else {})}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def dinov2_shapes(
    width: int,
    depth: int,
    patch: int,
    grid: int,
    hidden: int,
    swiglu: bool = False,
    registers: int = 0,
    chunks: int = 0,
) -> Shapes:
    """facebookresearch/dinov2: `hidden` is the width between the two matrices of the MLP."""
    shapes: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + grid * grid, width), "mask_token": (1, width)}
    shapes |= {"register_tokens": (1, registers, width)} if registers else {}
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for i in range(depth):
        block = f"blocks.{i * chunks // depth}.{i}" if chunks else f"blocks.{i}"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", 3 * width, width) | linear(f"{block}.attn.proj", width, width)
        shapes |= {f"{block}.ls1.gamma": (width,), f"{block}.ls2.gamma": (width,)}
        first, last = ("w12", "w3") if swiglu else ("fc1", "fc2")
        shapes |= linear(f"{block}.mlp.{first}", hidden * (2 if swiglu else 1), width)
        shapes |= linear(f"{block}.mlp.{last}", width, hidden)
    return shapes | norm("norm", width)


def transformers_shapes(
    width: int, depth: int, patch: int, grid: int, hidden: int, swiglu: bool = False, registers: int = 0
) -> Shapes:
    """Hugging Face's Dinov2Model, and Dinov2WithRegistersModel."""
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, 1 + grid * grid, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
    }
    shapes |= {"embeddings.register_tokens": (1, registers, width)} if registers else {}
    for i in range(depth):
        layer = f"encoder.layer.{i}"
        shapes |= norm(f"{layer}.norm1", width) | norm(f"{layer}.norm2", width)
        for name in ("attention.query", "attention.key", "attention.value", "output.dense"):
            shapes |= linear(f"{layer}.attention.{name}", width, width)
        shapes |= {f"{layer}.layer_scale{n}.lambda1": (width,) for n in (1, 2)}
        first, last = ("weights_in", "weights_out") if swiglu else ("fc1", "fc2")
        shapes |= linear(f"{layer}.mlp.{first}", hidden * (2 if swiglu else 1), width)
        shapes |= linear(f"{layer}.mlp.{last}", width, hidden)
    return shapes | norm("layernorm", width)


def vit_shapes(width: int, depth: int, patch: int, grid: int, hidden: int) -> Shapes:
    """Hugging Face's ViTModel, with its pooler."""
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, 1 + grid * grid, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
    }
    for i in range(depth):
        layer = f"encoder.layer.{i}"
        shapes |= norm(f"{layer}.layernorm_before", width) | norm(f"{layer}.layernorm_after", width)
        for name in ("attention.attention.query", "attention.attention.key", "attention.attention.value"):
            shapes |= linear(f"{layer}.{name}", width, width)
        shapes |= linear(f"{layer}.attention.output.dense", width, width)
        shapes |= linear(f"{layer}.intermediate.dense", hidden, width) | linear(f"{layer}.output.dense", width, hidden)
    return shapes | norm("layernorm", width) | linear("pooler.dense", width, width)


def dinov3_shapes(width: int, depth: int, patch: int, hidden: int, registers: int, heads: int, channels: int) -> Shapes:
    """facebookresearch/dinov3 with SwiGLU and without a bias of queries and keys, as GenBio-PathFM is built."""
    shapes: Shapes = {"cls_token": (1, 1, width), "storage_tokens": (1, registers, width)}
    shapes |= {"rope_embed.periods": (width // heads // 4,)}
    shapes |= {"patch_embed.proj.weight": (width, channels, patch, patch), "patch_embed.proj.bias": (width,)}
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", 3 * width, width, bias=False) | linear(f"{block}.attn.proj", width, width)
        shapes |= {f"{block}.ls1.gamma": (width,), f"{block}.ls2.gamma": (width,)}
        shapes |= linear(f"{block}.mlp.w1", hidden, width) | linear(f"{block}.mlp.w2", hidden, width)
        shapes |= linear(f"{block}.mlp.w3", width, hidden)
    return shapes | norm("norm", width)


def timm_shapes(width: int, depth: int, patch: int, grid: int, scaled: bool) -> Shapes:
    shapes: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + grid * grid, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", 3 * width, width) | linear(f"{block}.attn.proj", width, width)
        shapes |= {f"{block}.ls1.gamma": (width,), f"{block}.ls2.gamma": (width,)} if scaled else {}
        shapes |= linear(f"{block}.mlp.fc1", 4 * width, width) | linear(f"{block}.mlp.fc2", width, 4 * width)
    return shapes | norm("norm", width)


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def count(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


# ── the registry at full size ─────────────────────────────────────────────────────────────────────────────────────────

GPFM = dinov2_shapes(1024, 24, 14, 16, 4096, chunks=4)
HEADS = {"dino_head.mlp.0.weight": (2048, 1024), "dino_head.last_layer.weight_g": (65536, 1)}

# Each as its authors publish it; the parts around a vision tower are a few of them, under their true names.
PUBLISHED: dict[str, Shapes] = {
    "phikon_v2": transformers_shapes(1024, 24, 16, 14, 4096),
    "midnight_12k": transformers_shapes(1536, 40, 14, 37, 4096, swiglu=True),
    "hibou_b": transformers_shapes(768, 12, 14, 16, 2048, swiglu=True, registers=4),
    "hibou_l": transformers_shapes(1024, 24, 14, 16, 2736, swiglu=True, registers=4),
    "gpfm": under("backbone.", GPFM) | HEADS,
    "genbio_pathfm": dinov3_shapes(1536, 40, 16, 4096, 4, heads=24, channels=1),
    "keep": under("visual.", timm_shapes(1024, 24, 16, 14, scaled=True))
    | linear("visual_head.0", 768, 1024)
    | {"text.embeddings.word_embeddings.weight": (30522, 768), "logit_scale": ()},
    "conch": under("visual.trunk.", timm_shapes(768, 12, 16, 28, scaled=False))
    | {"visual.attn_pool_contrast.query": (1, 512), "visual.proj_contrast": (512, 512), "text.cls_emb": (768,)},
    "exaone_path_2": under("model_first_stg.", timm_shapes(768, 12, 16, 16, scaled=False))
    | under("model_second_stg.", norm("norm", 768) | {"cls_token": (1, 1, 768)}),
}


def wanted_shapes(record: Backbone) -> Shapes:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build_backbone(record).state_dict().items()}


def test_every_record_that_is_not_plain_timm_is_among_the_published() -> None:
    records = [find_backbone(name) for name in list_backbones()]
    assert {r.name for r in records if r.layout != "timm" or r.prefix} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tensors_fill_the_network_and_nothing_is_left(name: str) -> None:
    record, published = find_backbone(name), PUBLISHED[name]
    wanted = wanted_shapes(record)
    pieces = translate(published, wanted, record.layout, record.prefix)
    assert {target: piece.shape(published) for target, piece in pieces.items()} == wanted
    used = {part for piece in pieces.values() for part in piece.parts}
    left = {part.removeprefix(record.prefix) for part in published if part.startswith(record.prefix)} - {
        part.removeprefix(record.prefix) for part in used
    }
    assert left <= {"mask_token", "embeddings.mask_token", "rope_embed.periods"}
    for target, piece in pieces.items():
        made = piece.make([torch.empty(published[part], device="meta") for part in piece.parts])
        assert tuple(made.shape) == wanted[target]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # of the published files, mask tokens and all
        ("phikon_v2", 303_351_808),
        ("midnight_12k", 1_136_480_768),
        ("hibou_b", 85_741_056),
        ("hibou_l", 303_659_264),
    ],
)
def test_synthetic_checkpoints_have_the_published_size(name: str, parameters: int) -> None:
    assert count(PUBLISHED[name]) == parameters


def test_a_training_checkpoint_and_a_conversion_of_gpfm_fit_too() -> None:
    wanted = wanted_shapes(find_backbone("gpfm"))
    flat = dinov2_shapes(1024, 24, 14, 16, 4096)
    for published in (under("teacher.backbone.", GPFM) | under("student.backbone.", GPFM), flat):
        first = prefixes(published, "backbone.")[0]
        pieces = translate(published, wanted, "dinov2", first)
        assert {target: piece.shape(published) for target, piece in pieces.items()} == wanted
        assert all("student" not in part for piece in pieces.values() for part in piece.parts)


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────────────────

WIDTH, DEPTH, NUM_HEADS, PATCH, GRID = 32, 3, 2, 4, 3
Forward = Callable[[dict[str, Tensor], Tensor], Tensor]


def random_state(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Numbers that every tensor shows in the output: nothing is near zero or one by accident."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.3 + 0.1 for name, shape in shapes.items()}


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(n, tokens, width) each; heads side by side."""
    q, k, v = (t.unflatten(2, (NUM_HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def apply(s: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    if s[f"{name}.weight"].ndim == 1:
        return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], 1e-6)
    return F.linear(x, s[f"{name}.weight"], s.get(f"{name}.bias"))


def gated(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def patches(s: dict[str, Tensor], name: str, image: Tensor) -> Tensor:
    return F.conv2d(image, s[f"{name}.weight"], s[f"{name}.bias"], stride=PATCH).flatten(2).transpose(1, 2)


def begin(tokens: Tensor, cls: Tensor, table: Tensor, registers: Tensor | None) -> Tensor:
    x = torch.cat((cls.expand(len(tokens), -1, -1), tokens), dim=1) + table
    return x if registers is None else torch.cat((x[:, :1], registers.expand(len(x), -1, -1), x[:, 1:]), dim=1)


def dinov2_forward(s: dict[str, Tensor], image: Tensor) -> Tensor:
    x = begin(patches(s, "patch_embed.proj", image), s["cls_token"], s["pos_embed"], s.get("register_tokens"))
    blocks = [name.removesuffix(".norm1.bias") for name in s if name.endswith(".norm1.bias")]
    for block in sorted(blocks, key=lambda name: int(name.split(".")[-1])):
        q, k, v = apply(s, f"{block}.attn.qkv", apply(s, f"{block}.norm1", x)).chunk(3, dim=-1)
        x = x + s[f"{block}.ls1.gamma"] * apply(s, f"{block}.attn.proj", attend(q, k, v))
        h = apply(s, f"{block}.norm2", x)
        if f"{block}.mlp.w12.weight" in s:
            h = apply(s, f"{block}.mlp.w3", gated(apply(s, f"{block}.mlp.w12", h)))
        else:
            h = apply(s, f"{block}.mlp.fc2", F.gelu(apply(s, f"{block}.mlp.fc1", h)))
        x = x + s[f"{block}.ls2.gamma"] * h
    return apply(s, "norm", x)


def transformers_forward(s: dict[str, Tensor], image: Tensor) -> Tensor:
    tokens = patches(s, "embeddings.patch_embeddings.projection", image)
    cls, table = s["embeddings.cls_token"], s["embeddings.position_embeddings"]
    x = begin(tokens, cls, table, s.get("embeddings.register_tokens"))
    for i in range(DEPTH):
        layer, vit = f"encoder.layer.{i}", f"encoder.layer.{i}.layernorm_before.weight" in s
        h = apply(s, f"{layer}.layernorm_before" if vit else f"{layer}.norm1", x)
        q, k, v = (apply(s, f"{layer}.attention.attention.{part}", h) for part in ("query", "key", "value"))
        h = apply(s, f"{layer}.attention.output.dense", attend(q, k, v))
        x = x + s.get(f"{layer}.layer_scale1.lambda1", 1) * h
        h = apply(s, f"{layer}.layernorm_after" if vit else f"{layer}.norm2", x)
        if vit:
            h = apply(s, f"{layer}.output.dense", F.gelu(apply(s, f"{layer}.intermediate.dense", h)))
        elif f"{layer}.mlp.weights_in.weight" in s:
            h = apply(s, f"{layer}.mlp.weights_out", gated(apply(s, f"{layer}.mlp.weights_in", h)))
        else:
            h = apply(s, f"{layer}.mlp.fc2", F.gelu(apply(s, f"{layer}.mlp.fc1", h)))
        x = x + s.get(f"{layer}.layer_scale2.lambda1", 1) * h
    return apply(s, "layernorm", x)


def dinov3_forward(s: dict[str, Tensor], image: Tensor) -> Tensor:
    """One channel in; rotary positions of the patch tokens after Siméoni et al. 2025: base 100, sides from -1 to 1."""
    head = WIDTH // NUM_HEADS
    centre = 2 * (torch.arange(GRID) + 0.5) / GRID - 1
    where = torch.stack(torch.meshgrid(centre, centre, indexing="ij"), dim=-1).reshape(-1, 2)
    periods = 100 ** (torch.arange(head // 4) / (head // 4))
    angles = (2 * math.pi * where[:, :, None] / periods).flatten(1).tile(2)

    def turn(t: Tensor) -> Tensor:
        heads = t.unflatten(2, (NUM_HEADS, head))
        first, second = heads[:, 5:].chunk(2, dim=-1)
        half = torch.cat((-second, first), dim=-1)
        turned = heads[:, 5:] * angles.cos()[:, None] + half * angles.sin()[:, None]
        return torch.cat((heads[:, :5], turned), dim=1).flatten(2)

    tokens = patches(s, "patch_embed.proj", image)
    x = torch.cat((*(s[name].expand(len(tokens), -1, -1) for name in ("cls_token", "storage_tokens")), tokens), dim=1)
    for i in range(DEPTH):
        block = f"blocks.{i}"
        q, k, v = apply(s, f"{block}.attn.qkv", apply(s, f"{block}.norm1", x)).chunk(3, dim=-1)
        x = x + s[f"{block}.ls1.gamma"] * apply(s, f"{block}.attn.proj", attend(turn(q), turn(k), v))
        h = apply(s, f"{block}.norm2", x)
        h = F.silu(apply(s, f"{block}.mlp.w1", h)) * apply(s, f"{block}.mlp.w2", h)
        x = x + s[f"{block}.ls2.gamma"] * apply(s, f"{block}.mlp.w3", h)
    return apply(s, "norm", x)


def toy(layout: str, *, registers: int = 0, swiglu: bool = False, scaled: bool = True, prefix: str = "") -> Backbone:
    kwargs: dict[str, Any] = {"img_size": GRID * PATCH, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH}
    kwargs |= {"num_heads": NUM_HEADS, "dynamic_img_size": True}
    if swiglu:
        kwargs |= {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "mlp_ratio": 2 * 88 / WIDTH}
    if registers:
        kwargs |= {"reg_tokens": registers, "no_embed_class": True}
    if scaled:
        kwargs |= {"init_values": 1e-5}
    return find_backbone(
        {"timm": "vit_small_patch16_224", "timm_kwargs": kwargs, "layout": layout, "prefix": prefix, "name": "toy"}
    )


SIZES = {"width": WIDTH, "depth": DEPTH, "patch": PATCH, "grid": GRID}
PLAIN, GATED = {**SIZES, "hidden": 4 * WIDTH}, {**SIZES, "hidden": 88, "swiglu": True}

NUMBERS: dict[str, tuple[Backbone, Shapes, Forward]] = {
    "dinov2": (toy("dinov2"), dinov2_shapes(**PLAIN), dinov2_forward),
    "dinov2 in chunks": (toy("dinov2"), dinov2_shapes(**PLAIN, chunks=2), dinov2_forward),
    "dinov2 gated": (toy("dinov2", swiglu=True), dinov2_shapes(**GATED), dinov2_forward),
    "dinov2 gated with registers": (
        toy("dinov2", swiglu=True, registers=4),
        dinov2_shapes(**GATED, registers=4),
        dinov2_forward,
    ),
    "transformers": (toy("transformers"), transformers_shapes(**PLAIN), transformers_forward),
    "transformers gated": (toy("transformers", swiglu=True), transformers_shapes(**GATED), transformers_forward),
    "transformers gated with registers": (
        toy("transformers", swiglu=True, registers=4),
        transformers_shapes(**GATED, registers=4),
        transformers_forward,
    ),
    "transformers vit": (toy("transformers", scaled=False), vit_shapes(**PLAIN), transformers_forward),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_are_the_published_networks(case: str, tmp_path: Path) -> None:
    record, shapes, forward = NUMBERS[case]
    state = random_state(shapes)
    save_file(state, tmp_path / "toy.safetensors")
    model = build_backbone(record, str(tmp_path / "toy.safetensors")).eval()
    image = torch.randn(2, 3, GRID * PATCH, GRID * PATCH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = model.forward_features(image)
        torch.testing.assert_close(tokens, forward(state, image), atol=2e-5, rtol=1e-4)
        assert torch.equal(pool_features(model, image, "cls"), tokens[:, 0])


def genbio_toy() -> Backbone:
    published = find_backbone("genbio_pathfm")
    kwargs = {**published.timm_kwargs, "img_size": GRID * PATCH, "patch_size": PATCH, "depth": DEPTH}
    kwargs |= {"embed_dim": WIDTH, "num_heads": NUM_HEADS, "swiglu_align_to": 1}
    return find_backbone({**published.to_dict(), "timm_kwargs": kwargs, "patch": PATCH, "features": 3 * WIDTH})


def test_numbers_of_dinov3_with_channels_one_by_one(tmp_path: Path) -> None:
    record = genbio_toy()
    state = random_state(dinov3_shapes(WIDTH, DEPTH, PATCH, 85, 4, NUM_HEADS, channels=1))
    save_file(state, tmp_path / "toy.safetensors")
    model = build_backbone(record, str(tmp_path / "toy.safetensors")).eval()
    image = torch.randn(2, 3, GRID * PATCH, GRID * PATCH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        channels = [dinov3_forward(state, image[:, c : c + 1]) for c in range(3)]
        torch.testing.assert_close(model.forward_features(image), torch.cat(channels, dim=2), atol=2e-5, rtol=1e-4)
        features = pool_features(model, image, record.pooling)
    torch.testing.assert_close(features, torch.cat([c[:, 0] for c in channels], dim=1), atol=2e-5, rtol=1e-4)


# ── files that are not quite what the record says ─────────────────────────────────────────────────────────────────────


def test_a_file_in_another_layout_is_recognised(tmp_path: Path) -> None:
    """A conversion to timm's names fills a record of transformers; Meta's names under a prefix fill one of timm."""
    record, shapes, _ = NUMBERS["transformers gated with registers"]
    save_file(random_state(shapes), tmp_path / "published.safetensors")
    converted = build_backbone(record, str(tmp_path / "published.safetensors")).state_dict()
    save_file(converted, tmp_path / "converted.safetensors")
    again = build_backbone(record, str(tmp_path / "converted.safetensors")).state_dict()
    assert all(torch.equal(again[name], converted[name]) for name in converted)

    state = random_state(NUMBERS["dinov2 in chunks"][1])
    other = {f"student.{name}": torch.zeros_like(value) for name, value in state.items()}
    save_file({f"teacher.{name}": v for name, v in state.items()} | other, tmp_path / "both.safetensors")
    model = build_backbone(toy("timm"), str(tmp_path / "both.safetensors")).eval()
    image = torch.randn(1, 3, GRID * PATCH, GRID * PATCH)
    with torch.no_grad():
        expected = dinov2_forward(state, image)
        torch.testing.assert_close(model.forward_features(image), expected, atol=2e-5, rtol=1e-4)


def test_what_stands_outside_the_prefix_is_left_out(tmp_path: Path) -> None:
    state = random_state(timm_shapes(WIDTH, DEPTH, PATCH, GRID, scaled=True))
    around = {"visual_head.0.weight": torch.zeros(8, WIDTH), "text.norm.weight": torch.zeros(8)}
    save_file({f"visual.{name}": v for name, v in state.items()} | around, tmp_path / "tower.safetensors")
    record = toy("timm", prefix="visual.")
    loaded = build_backbone(record, str(tmp_path / "tower.safetensors")).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    save_file({**state, **around}, tmp_path / "bare.safetensors")
    with pytest.raises(WeightsError) as caught:
        build_backbone(record, str(tmp_path / "bare.safetensors"))
    assert caught.value.details == ("2 unexpected: text.norm.weight, visual_head.0.weight",)


def test_half_of_the_tensors_missing_is_counted_under_our_names(tmp_path: Path) -> None:
    record, shapes, _ = NUMBERS["transformers gated"]
    state = {name: value for name, value in random_state(shapes).items() if ".layer.1." not in name}
    del state["encoder.layer.0.attention.attention.key.weight"]
    state["encoder.layer.0.stranger"] = torch.zeros(1)
    save_file(state, tmp_path / "half.safetensors")
    with pytest.raises(WeightsError, match="does not fit toy") as caught:
        load_pretrained(build_backbone(record), tmp_path / "half.safetensors", record)
    missing, unexpected, shape = caught.value.details
    assert missing.startswith("14 missing: blocks.1.norm1.weight")
    assert unexpected == "1 unexpected: blocks.0.stranger"
    assert shape == "1 of another shape: blocks.0.attn.qkv.weight (64, 32) instead of (96, 32)"


def test_a_position_table_for_another_size_says_so(tmp_path: Path) -> None:
    state = random_state(dinov2_shapes(WIDTH, DEPTH, PATCH, GRID + 2, 4 * WIDTH))
    save_file(state, tmp_path / "large.safetensors")
    with pytest.raises(WeightsError) as caught:
        build_backbone(toy("dinov2"), str(tmp_path / "large.safetensors"))
    assert caught.value.details == ("1 of another shape: pos_embed (1, 26, 32) instead of (1, 10, 32)",)


def test_numbers_that_are_not_finite_are_named_as_ours(tmp_path: Path) -> None:
    record, shapes, _ = NUMBERS["transformers"]
    state = random_state(shapes)
    state["encoder.layer.2.attention.attention.value.bias"][3] = float("inf")
    save_file(state, tmp_path / "inf.safetensors")
    with pytest.raises(WeightsError, match=r"not finite: blocks\.2\.attn\.qkv\.bias"):
        build_backbone(record, str(tmp_path / "inf.safetensors"))


def test_half_precision_files_are_added_up_in_single(tmp_path: Path) -> None:
    record, shapes, _ = NUMBERS["dinov2 gated with registers"]
    state = {name: value.bfloat16() for name, value in random_state(shapes).items()}
    save_file(state, tmp_path / "half.safetensors")
    loaded = build_backbone(record, str(tmp_path / "half.safetensors")).state_dict()
    assert torch.equal(loaded["cls_token"], state["cls_token"].float() + state["pos_embed"][:, :1].float())
    assert torch.equal(loaded["pos_embed"], state["pos_embed"][:, 1:].float())


def test_timm_renames_nothing() -> None:
    shapes: Shapes = {"register_tokens": (1, 4, 8), "blocks.0.1.mlp.w12.weight": (2, 2), "mask_token": (1,)}
    assert set(translate(shapes, {}, "timm")) == set(shapes)
    assert set(LAYOUTS) == {"timm", "dinov2", "dinov3", "transformers"}
