"""What a recipe will cost, against what it then cost: sizes exactly; times are for a quiet machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from midog import api
from midog.data.patches import PatchTable
from midog.recipe import load_recipe
from midog.status import readable_seconds
from midog.training.dry_run import READING, dry_run
from midog.training.launch import train_recipe

MIXED = """
each:
  pretrained: random
  image: {crop: 64, size: 64}
  augment: light
  training: {epochs: 1, batch: 8, lr: 1e-3, warmup: 0}
members:
  lora: {backbone: test_vit, tune: {kind: lora, rank: 4}}
  prompts: {backbone: test_vit, tune: prompts}
  full: {backbone: test_efficientnet, tune: full}
blend: {kind: equal, views: rot4}
"""
STARTED = MIXED.replace(
    "blend:",
    """\
  begun: {backbone: test_vit, tune: {kind: lora, rank: 4}, start: {kind: reconstruct, epochs: 1}}
  taught: {backbone: test_efficientnet, tune: head, start: {kind: distil, teacher: lora, epochs: 3, features: 1}}
blend:""",
)


def test_each_member_is_proved_and_nothing_kept(table: PatchTable) -> None:
    result = dry_run(load_recipe("smoke", ["members.vit.tune.rank=2"]), table)
    assert [proof.member for proof in result.proofs] == ["vit", "convnext"]
    assert all(proof.largest_difference < 1e-5 for proof in result.proofs)
    assert result.proofs[0].trained < result.proofs[0].parameters
    text = result.text()
    assert "members.vit.tune.rank: 4 → 2" in text
    assert "reloaded logits differ" in text and "what it will cost on this device (cpu)" in text


def test_costs_add_up(table: PatchTable, tmp_path: Path) -> None:
    (tmp_path / "mixed.yaml").write_text(MIXED)
    result = dry_run(load_recipe(tmp_path / "mixed.yaml"), table)
    for proof in result.proofs:
        scoring = proof.seconds_per_view * 10 * 24  # ten views of the half that is left out
        assert proof.seconds_per_fold == pytest.approx(proof.seconds_per_epoch + scoring)
        assert proof.memory > 4 * proof.parameters
    assert result.seconds == pytest.approx(2 * sum(proof.seconds_per_fold for proof in result.proofs))
    forward = sum(proof.seconds_per_view for proof in result.proofs) * 16 * 4 * 2
    assert result.stack_seconds == pytest.approx(result.start_up + result.bundle_bytes / READING + forward)
    assert readable_seconds(result.seconds) in result.text()
    assert json.loads(json.dumps(result.to_dict()))["bundle_bytes"] == result.bundle_bytes


def test_a_start_is_proved_and_counted(table: PatchTable, tmp_path: Path) -> None:
    (tmp_path / "mixed.yaml").write_text(STARTED)
    result = dry_run(load_recipe(tmp_path / "mixed.yaml"), table, members=["lora", "begun", "taught"])
    plain, *started = result.proofs
    assert plain.start == "" and plain.seconds_of_start == 0
    assert [proof.start for proof in started] == ["reconstruct, epochs: 1", "distil, epochs: 3"]
    for proof in started:
        scoring = proof.seconds_per_view * 10 * 24
        assert proof.seconds_per_fold == pytest.approx(proof.seconds_of_start + proof.seconds_per_epoch + scoring)
        assert proof.seconds_of_start > 0 and proof.largest_difference < 1e-5
        assert f"its start ({proof.start})" in result.text()
    assert started[0].file_bytes > plain.file_bytes


def test_the_bundle_has_the_size_that_was_foretold(table: PatchTable, tmp_path: Path) -> None:
    (tmp_path / "mixed.yaml").write_text(STARTED)
    recipe = load_recipe(tmp_path / "mixed.yaml")
    foretold = dry_run(recipe, table).bundle_bytes
    train_recipe(recipe, table, tmp_path / "run", threads=1)
    api.blend_runs(tmp_path / "run").write(tmp_path / "blend")
    api.pack_bundle(tmp_path / "blend", tmp_path / "model.tar.gz", None)
    manifest = api.load_bundle(tmp_path / "model.tar.gz").manifest
    weights = sum(about["bytes"] for name, about in manifest["files"].items() if name.endswith(".safetensors"))
    # Names and shapes come on top: a header for each file.
    assert foretold < weights < 1.05 * foretold


def test_a_dry_run_says_how_far_fourier_targets_move_the_colour(recipe_path: Path, table: PatchTable) -> None:
    on = load_recipe(recipe_path, ["each.augment={kind: paper}"])
    shift = dry_run(on, table).proofs[0].colour_shift
    assert len(shift) == 3 and min(shift) > 1  # photographs against stained tissue
    kept = load_recipe(recipe_path, ["each.augment={kind: paper, fourier: {include_dc: false}}"])
    assert dry_run(kept, table).proofs[0].colour_shift == ()
