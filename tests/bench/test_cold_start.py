"""The measurement runs real processes and says what it measured; the speed itself is for a quiet machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from bundle_fixture import draw_patches

from midog.bench.cold_start import HALF, LIMIT, SPARE, WHOLE, _plans, _size, _whole, compare
from midog.bench.stand_in import copies_bundle, recipe_bundle
from midog.bundle import open_bundle
from midog.errors import CheckFailed
from submission.stack import write_job


def test_entry_point_and_floor_side_by_side(tmp_path: Path, tiny_folder: Path) -> None:
    rows = {row["name"]: row for row in compare(tiny_folder, write_job(tmp_path, draw_patches(2)), 1, warm=False)}
    assert list(rows) == ["wall time", "processor time", "peak memory", "beyond the largest backbone"]
    for name in ("wall time", "processor time", "peak memory"):
        assert rows[name]["ours"] > 0 and rows[name]["floor"] > 0
        assert rows[name]["ratio"] == pytest.approx(rows[name]["ours"] / rows[name]["floor"])
    assert rows["wall time"]["limit"] == LIMIT
    assert rows["beyond the largest backbone"]["limit"] == SPARE
    assert 0 < rows["peak memory"]["ours"] - rows["beyond the largest backbone"]["ours"] < 5


def test_the_floor_runs_every_network_as_often_as_the_bundle_does(tmp_path: Path, tiny_folder: Path) -> None:
    plans = {plan["timm"]: plan for plan in _plans(tiny_folder, write_job(tmp_path, draw_patches(3)))}
    assert {plan["pages"] for plan in plans.values()} == {3}
    assert set(plans) == {"test_vit", "test_efficientnet"}
    assert {plan["forwards"] for plan in plans.values()} == {2 * 4}
    assert all(Path(file).is_file() for plan in plans.values() for file in plan["files"])
    assert plans["test_efficientnet"]["size"] == 64


def test_a_process_that_fails_is_told(tmp_path: Path, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "damaged")
    fold = next((tmp_path / "damaged" / "members").rglob("*.safetensors"))
    fold.write_bytes(fold.read_bytes()[:-1])
    with pytest.raises(CheckFailed, match="status 4"):
        compare(tmp_path / "damaged", write_job(tmp_path / "job", draw_patches(1)), 1, warm=False)


def test_the_bundle_it_makes_is_a_bundle(tmp_path: Path) -> None:
    bundle = open_bundle(recipe_bundle(tmp_path / "bundle", "smoke"))
    assert len(bundle.point.members) > 1 and bundle.point.views == "rot4"
    backbones = [entry["backbone"] for entry in bundle.manifest["members"]]
    assert any(backbones) and not all(backbones)
    assert np.isfinite(bundle.predict(draw_patches(2)).logit).all()


def test_copies_hold_each_backbone_once_and_are_measured_against_one(tmp_path: Path) -> None:
    folder = copies_bundle(tmp_path / "bundle", "timm/test_vit", copies=2, folds=3, views="none")
    bundle = open_bundle(folder)
    entries = bundle.manifest["members"]
    assert len({entry["backbone"] for entry in entries}) == 2 and [len(entry["folds"]) for entry in entries] == [3, 3]
    hashes = [about["sha256"] for about in bundle.manifest["files"].values()]
    assert len(set(hashes)) == len(hashes)
    assert np.isfinite(bundle.predict(draw_patches(2)).logit).all()

    size, parameters = _size(folder), 306_240  # of timm/test_vit, without a classifier
    assert size["floor"] * 1e6 == 2 * 2 * parameters
    assert size["ours"] > size["floor"] and size["limit"] == HALF
    whole = _whole(folder, write_job(tmp_path / "job", draw_patches(1)), ours=1e6)
    assert 50 < whole["floor"] < 5000 and whole["limit"] == WHOLE  # megabytes of a process with torch
    assert whole["ratio"] == pytest.approx(1e6 / whole["floor"])
