"""The augmentation benchmark runs and keeps its promise: a ratio to albumentations in the same run."""

import pytest

from midog.bench.augment import measure


def test_measured_beside_albumentations():
    rows = {row["name"]: row for row in measure(n=40)}
    assert list(rows) == ["FDA, amplitudes kept", "FDA, target as image", "fisheye", "kind paper"]
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["theirs_ms"] / row["ours_ms"])
    assert rows["FDA, amplitudes kept"]["ratio"] > 4
    assert rows["kind paper"]["ratio"] > 2
