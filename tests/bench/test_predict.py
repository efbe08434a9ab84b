"""The measurement runs real bundles and says what it measured; the speed itself is for a quiet machine."""

from __future__ import annotations

import math

import pytest

from midog.bench.predict import LIMIT, measure


def test_fold_models_and_bare_forwards_side_by_side() -> None:
    rows = measure("test_vit", folds=2, patches=3, turns=1)
    assert [row["name"] for row in rows] == [
        "2 fold models, 3 patches",
        "pixels to logits, 3 patches",
        "switch",
        "switch",
        "first call",
        "peak memory",
        "beyond one bare network",
    ]
    for row in rows[:-1]:
        assert row["ours"] > 0 and math.isfinite(row["ours"]), row["name"]
    for row in (rows[0], rows[1], rows[5]):
        assert row["floor"] > 0
        assert row["ratio"] == pytest.approx(row["ours"] / row["floor"])
    assert rows[0]["limit"] == LIMIT
    assert rows[3]["ours"] == pytest.approx(rows[2]["ours"] / (rows[1]["floor"] / 3))
    assert abs(rows[6]["ours"]) < 50
