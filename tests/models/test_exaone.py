"""EXAONE Path 2.0: the first stage out of its file, the name of what is derived from it, and its licence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bundle_fixture import make_blend, make_run
from safetensors.torch import save_file

from midog.bundle import open_bundle, pack, read_manifest
from midog.data.patches import PatchTable
from midog.errors import UsageError, WeightsError
from midog.files import sha256_file
from midog.models.backbones import Backbone, find_backbone
from midog.models.build import build_backbone, empty_backbone
from midog.models.classifier import Network
from midog.models.heads.linear import pool_features
from midog.models.preprocess import Image
from midog.models.tuning import Lora
from midog.recipe import load_recipe

PREFIX = "model_first_stg."
LICENCE = "EXAONEPath AI Model License 1.0-NC"


def micro() -> Backbone:
    """A small network that says of itself what the record does."""
    record = find_backbone("exaone_path_2")
    assert record.prefix == PREFIX and record.licence == LICENCE
    return find_backbone(
        {"timm": "test_vit", "name": "exaone_micro", "prefix": PREFIX, "licence": LICENCE, "pooling": record.pooling}
    )


def three_stages(path: Path, skip: str = "", prefix: str = PREFIX) -> dict[str, torch.Tensor]:
    """A synthetic checkpoint of three stages; returns the first stage's tensors."""
    first = {k: v for k, v in build_backbone(micro(), "random", 5).state_dict().items() if k != skip}
    others = {f"model_second_stg.{k}": v * 2 for k, v in first.items()} | {"fc.weight": torch.ones(2, 3)}
    save_file({**{f"{prefix}{k}": v for k, v in first.items()}, **others}, path)
    return first


def test_the_record_builds_what_the_articles_first_stage_is() -> None:
    import timm

    record = find_backbone("exaone_path_2")
    with torch.device("meta"):
        built = empty_backbone(record).state_dict()
        plain = timm.create_model("vit_base_patch16_224", img_size=256, num_classes=0).state_dict()
    assert {name: tensor.shape for name, tensor in built.items()} == {n: t.shape for n, t in plain.items()}
    assert sum(tensor.numel() for tensor in built.values()) == 85_844_736


def test_the_first_stage_is_cut_out_of_the_file(tmp_path: Path) -> None:
    first = three_stages(tmp_path / "exaone.safetensors")
    built = build_backbone(micro(), str(tmp_path / "exaone.safetensors"))
    assert all(torch.equal(built.state_dict()[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize("broken", [{"skip": "blocks.0.attn.qkv.weight"}, {"prefix": "first."}])
def test_a_missing_key_or_a_wrong_prefix_is_one_clear_error(tmp_path: Path, broken: dict[str, str]) -> None:
    three_stages(tmp_path / "exaone.safetensors", **broken)
    with pytest.raises(WeightsError) as caught:
        build_backbone(micro(), str(tmp_path / "exaone.safetensors"))
    missing = broken.get("skip", "blocks.0.norm1.weight")
    assert any(missing in line for line in str(caught.value).splitlines()), str(caught.value)


@torch.no_grad()
def test_its_feature_is_the_cls_token_after_the_last_norm() -> None:
    built, x = build_backbone(micro(), "random", 1).eval(), torch.randn(2, 3, 160, 160)
    expected = built.forward_head(built.forward_features(x), pre_logits=True)
    assert built.global_pool == "token"
    assert torch.equal(pool_features(built, x, "cls"), expected)


def test_what_is_derived_from_it_carries_its_name(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("members: {exaone_path_2: {}}")
    with pytest.raises(UsageError) as caught:
        load_recipe(recipe)
    assert "has a name beginning with EXAONEPath" in caught.value.details[0]
    assert caught.value.fix == "members: {EXAONEPath-lora: {backbone: exaone_path_2}}"
    recipe.write_text(caught.value.fix)
    assert list(load_recipe(recipe).members) == ["EXAONEPath-lora"]
    recipe.write_text("members: {mine: {backbone: exaone_path_2, pretrained: random}}")
    assert list(load_recipe(recipe).members) == ["mine"], "random weights are nobody's"


@pytest.fixture
def blend(tiny_table: PatchTable, tmp_path: Path) -> Path:
    file = tmp_path / "exaone.safetensors"
    three_stages(file)
    networks = {"EXAONEPath-lora": Network(micro(), str(file), Image(size=160), Lora(rank=2), seed=1)}
    run = make_run(tmp_path / "run", tiny_table, networks)
    for done in run.rglob("done.json"):
        content = json.loads(done.read_text())
        content["identity"]["pretrained"] = sha256_file(file)
        done.write_text(json.dumps(content))
    return make_blend(tmp_path / "blend", run, networks, {"full": (("EXAONEPath-lora",), (1.0,), "none")})


def test_bundling_is_refused_with_the_terms_until_they_are_accepted(blend: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        pack(blend, tmp_path / "model.tar.gz")
    assert "exaone_micro: EXAONEPath AI Model License 1.0-NC: research only" in caught.value.details[0]
    assert "--accept-licence exaone_micro" in caught.value.fix
    assert not (tmp_path / "model.tar.gz").exists()
    with pytest.raises(UsageError, match="did you mean exaone_micro"):
        pack(blend, tmp_path / "model.tar.gz", accept=["exaone_mikro"])
    accepted = pack(blend, tmp_path / "model.tar.gz", accept=["exaone_micro"])
    assert read_manifest(accepted)["accepted_licences"] == {"exaone_micro": LICENCE}
    assert open_bundle(accepted).point.members == ("EXAONEPath-lora",)


def test_a_bundle_that_nothing_binds_asks_for_nothing(tiny_blend: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    assert "accepted_licences" not in read_manifest(tiny_bundle)
    with pytest.raises(UsageError, match="no member's licence asks to be accepted"):
        pack(tiny_blend, tmp_path / "model.tar.gz", accept=["exaone_path_2"])
