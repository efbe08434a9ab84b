from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from midog.errors import UsageError
from midog.models.backbones import Backbone, build_backbone, empty_backbone, find_backbone, list_backbones
from midog.models.heads.linear import feature_width, pool_features


def on_meta(record: Backbone) -> torch.nn.Module:
    with torch.device("meta"):
        return build_backbone(record)


@pytest.mark.parametrize("name", list_backbones())
def test_parameters_and_features_are_exact(name: str) -> None:
    record = find_backbone(name)
    model = on_meta(record)
    assert sum(parameter.numel() for parameter in model.parameters()) == record.parameters
    assert feature_width(model, record.pooling) == record.features
    assert getattr(model, "num_prefix_tokens", 0) == record.prefix_tokens
    image = torch.empty(2, 3, record.input_size, record.input_size, device="meta")
    assert pool_features(model, image, record.pooling).shape == (2, record.features)


@pytest.mark.parametrize(
    ("name", "published_millions", "features"),
    [
        ("uni", 303.3, 1024),  # Chen et al. 2024: ViT-L, 0.3 B
        ("virchow", 631, 2560),  # Vorontsov et al. 2024: 631 M
        ("virchow2", 631, 2560),
        ("convnextv2_base", 88.7 - 1.0, 1024),  # timm's table, less the classifier of 1,025,000
    ],
)
def test_published_sizes(name: str, published_millions: float, features: int) -> None:
    record = find_backbone(name)
    assert record.parameters is not None
    assert record.parameters / 1e6 == pytest.approx(published_millions, rel=0.002)
    assert record.features == features


def test_records_are_complete_data() -> None:
    for name in list_backbones():
        record = find_backbone(name)
        assert record.name == name
        assert record.licence != "unknown"
        assert record.source or name.startswith("test_")
        assert find_backbone(record.to_dict()) == record
    assert all(find_backbone(name).gated for name in ("uni", "virchow", "virchow2"))


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown backbone: virchov2") as caught:
        find_backbone("virchov2")
    assert "did you mean virchow2?" in caught.value.fix
    assert "timm/NAME" in caught.value.fix
    with pytest.raises(UsageError, match="did you mean resnet18"):
        find_backbone("timm/resnet_18")


def test_hub_addresses_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown timm model"):
        find_backbone("timm/hf-hub:MahmoodLab/UNI")
    with pytest.raises(UsageError, match="unknown timm model"):
        find_backbone({"timm": "hf_hub:MahmoodLab/UNI"})


def test_any_timm_model_is_a_backbone() -> None:
    vit = find_backbone("timm/vit_tiny_patch16_224")
    known = find_backbone("vit_tiny_patch16_224")
    assert (vit.parameters, vit.features, vit.patch, vit.pooling) == (known.parameters, 192, 16, "cls")
    assert (vit.mean, vit.timm_kwargs, vit.lora_targets) == (known.mean, known.timm_kwargs, known.lora_targets)
    mobile = find_backbone("timm/mobilenetv3_small_050")
    features = pool_features(build_backbone(mobile), torch.zeros(2, 3, 64, 64), mobile.pooling)
    assert (mobile.pooling, mobile.patch, mobile.lora_targets) == ("avg", None, ())
    assert features.shape == (2, mobile.features)
    assert find_backbone("timm/swin_tiny_patch4_window7_224").pooling == "avg"


def test_inline_record_overrides_what_timm_implies() -> None:
    record = find_backbone(
        {"timm": "test_vit", "name": "mine", "pooling": "cls+mean", "timm_kwargs": {"init_values": 0.1}}
    )
    assert (record.name, record.input_size, record.features) == ("mine", 160, 128)
    assert record.timm_kwargs == {"init_values": 0.1}
    features = pool_features(build_backbone(record), torch.zeros(1, 3, 96, 96), record.pooling)
    assert features.shape == (1, 128)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"timm": "test_vit", "poling": "cls"}, "did you mean pooling"),
        ({"name": "mine"}, "names no timm architecture"),
        ({"timm": "test_vit", "pooling": "cls+men"}, "did you mean cls\\+mean"),
        ({"timm": "test_convnext", "pooling": "cls"}, "needs a CLS token"),
        ({"timm": "test_convnext", "timm_kwargs": {"ls_init_value": None}}, "ignores arguments that are null: ls_init"),
        ({"timm": "test_vit", "timm_kwargs": {"no_such_argument": 1}}, "timm cannot build test_vit"),
    ],
)
def test_inline_record_problems(record: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_backbone(record)


def test_random_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build_backbone("test_vit", seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = build_backbone("test_vit", seed=3).state_dict(), build_backbone("test_vit", seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    "name",
    [
        "test_vit",
        {"timm": "vit_small_patch16_rope_224", "timm_kwargs": {"depth": 2}},
        "timm/test_vit_relpos",
        "test_efficientnet",
    ],
)
def test_empty_backbone_has_the_real_buffers(name: str | dict[str, object]) -> None:
    """Rotary tables and relative positions are in no checkpoint: only building computes them."""
    record = find_backbone(name)
    real, empty = build_backbone(record).eval(), empty_backbone(record).eval()
    assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
    for key, buffer in real.named_buffers():
        assert torch.equal(empty.get_buffer(key), buffer), key
    empty.load_state_dict(real.state_dict())
    x = torch.randn(2, 3, record.input_size, record.input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(pool_features(real, x, record.pooling), pool_features(empty, x, record.pooling))


def test_empty_backbone_draws_no_random_numbers() -> None:
    before = torch.random.get_rng_state()
    empty_backbone(find_backbone("test_vit"))
    after_weights = torch.random.get_rng_state()
    # timm draws the position table and tokens from a factory function; the layers' fills are left out.
    build_backbone("test_vit")
    assert torch.equal(after_weights, torch.random.get_rng_state())
    assert before.shape == after_weights.shape


def test_resizable_positions_change_nothing_at_native_size() -> None:
    record = find_backbone("test_vit")
    fixed = find_backbone({**record.to_dict(), "timm_kwargs": {"dynamic_img_size": False}})
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        resizable = pool_features(build_backbone(record, seed=1).eval(), x, "cls")
        assert torch.equal(resizable, pool_features(build_backbone(fixed, seed=1).eval(), x, "cls"))


def test_looking_up_a_record_needs_no_torch() -> None:
    code = "import sys; from midog.models.backbones import *; find_backbone('uni'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
