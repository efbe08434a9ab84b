"""The measurement runs real processes and says what it measured; the speed itself is for a quiet machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundle_fixture import draw_patches

from midog.bench.cold_start import LIMIT, SPARE, _plans, compare, make_bundle
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


def test_the_floor_runs_every_network_as_often_as_the_bundle_does(tiny_folder: Path) -> None:
    plans = {plan["timm"]: plan for plan in _plans(tiny_folder)}
    assert set(plans) == {"test_vit", "test_efficientnet"}
    assert {plan["forwards"] for plan in plans.values()} == {2 * 4}
    assert all(Path(file).is_file() for plan in plans.values() for file in plan["files"])
    assert plans["test_efficientnet"]["size"] == 64


def test_a_process_that_fails_is_told(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(CheckFailed, match="status 5"):
        compare(tiny_folder, tmp_path, 1, warm=False)


def test_the_bundle_it_makes_is_a_bundle(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "bundle", "smoke"))
    assert len(bundle.point.members) > 1 and bundle.point.views == "rot4"
    backbones = [entry["backbone"] for entry in bundle.manifest["members"]]
    assert any(backbones) and not all(backbones)
    assert np.isfinite(bundle.predict(draw_patches(2)).logit).all()
