from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from midog.errors import UsageError
from midog.models.backbones import find_backbone, list_backbones
from midog.models.build import build_backbone, empty_backbone
from midog.models.heads.linear import pool_features


def test_records_are_complete_data() -> None:
    for name in list_backbones():
        record = find_backbone(name)
        assert record.name == name
        assert record.licence != "unknown"
        assert record.source or name.startswith("test_")
        assert record.file or not record.source
        assert find_backbone(record.to_dict()) == record
        assert find_backbone(json.loads(json.dumps(record.to_dict()))) == record
    gated = {name for name in list_backbones() if find_backbone(name).gated}
    assert gated >= {"uni", "uni2_h", "virchow", "virchow2", "h_optimus_0", "h_optimus_1", "h0_mini", "conch"}
    assert not gated & {"midnight_12k", "gpfm", "keep", "lunit_vits8", "kaiko_vitb16", "convnextv2_base"}


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown backbone: virchov2") as caught:
        find_backbone("virchov2")
    assert "did you mean virchow2?" in caught.value.fix
    assert "timm/NAME" in caught.value.fix
    with pytest.raises(UsageError, match="did you mean resnet18"):
        find_backbone("timm/resnet_18")


@pytest.mark.parametrize(
    ("written", "name"),
    [("UNI2-h", "uni2_h"), ("H-optimus-0", "h_optimus_0"), ("Phikon-v2", "phikon_v2"), ("VIRCHOW2", "virchow2")],
)
def test_capitals_and_hyphens_are_as_good(written: str, name: str) -> None:
    assert find_backbone(written) is find_backbone(name)


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("uni2h", "uni2_h"),
        ("midnight", "midnight_12k"),
        ("gigapath", "prov_gigapath"),
        ("exaone_path", "exaone_path_2"),
    ],
)
def test_nearest_names_of_pathology(written: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_backbone(written)
    assert nearest in caught.value.fix


@pytest.mark.parametrize("name", ["uni", "virchow", "virchow2", "test_vit", "convnextv2_atto"])
def test_records_stored_by_the_first_release_read_as_todays(name: str) -> None:
    """A fold model keeps its backbone's record as it was; these fields came later."""
    stored = {key: value for key, value in find_backbone(name).to_dict().items() if key not in ("layout", "prefix")}
    assert find_backbone(stored) == find_backbone(name)


def test_a_stored_record_is_read_as_it_is() -> None:
    """Nothing is derived that it does not say: a width of its own, no count."""
    stored = {**find_backbone("test_vit").to_dict(), "features": 7, "parameters": None}
    del stored["layout"], stored["prefix"]
    record = find_backbone(stored)
    assert (record.features, record.parameters, record.layout, record.prefix) == (7, None, "timm", "")


def test_inline_record_names_its_layout() -> None:
    record = find_backbone({"timm": "test_vit", "layout": "dinov2", "prefix": "teacher.backbone."})
    assert (record.layout, record.prefix, record.features) == ("dinov2", "teacher.backbone.", 64)


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
        ({"timm": "test_vit", "layout": "dinov1"}, "unknown layout: dinov1"),
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


def test_one_channel_networks_see_red_green_and_blue_one_by_one() -> None:
    record = find_backbone({"timm": "test_vit", "timm_kwargs": {"in_chans": 1}, "name": "grey"})
    assert (record.features, record.prefix_tokens) == (3 * 64, 1)
    model = build_backbone(record, seed=1).eval()
    one = build_backbone("test_vit", seed=1).eval()
    state = model.state_dict()
    # The three-channel twin adds up what its patches see of each channel: of one channel three times, that is the same.
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].expand(-1, 3, -1, -1) / 3
    one.load_state_dict(state)
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = pool_features(model, x, "cls")
        expected = [pool_features(one, x[:, c : c + 1].expand(-1, 3, -1, -1), "cls") for c in range(3)]
        torch.testing.assert_close(features, torch.cat(expected, dim=1), atol=1e-5, rtol=1e-4)
        both = pool_features(model, x, "cls+mean")
    assert both.shape == (2, 6 * 64)
    assert torch.equal(both[:, : 3 * 64], features)


def test_looking_up_a_record_needs_no_torch() -> None:
    code = "import sys; from midog.models.backbones import *; find_backbone('uni'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
