"""The measurement runs on drawn patches and says what it measured; the speed itself is for a quiet machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from midog.bench.train import measure


def test_an_epoch_is_measured_beside_the_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIDOG_DATA", raising=False)
    monkeypatch.setenv("MIDOG_CACHE", str(tmp_path))
    rows = measure(backbone="test_vit", patches=64)
    assert rows[0]["name"].startswith("test_vit, batch 32, 32 at once")
    values = {row["name"]: row for row in rows[1:]}
    speed = values["training speed"]
    assert speed["ours"] > 0 and speed["ratio"] == pytest.approx(speed["ours"] / speed["plain"])
    assert values["an epoch of 12,000 patches"]["ours"] == pytest.approx(12_000 / speed["ours"])
    assert 0 <= values["waiting for batches"]["ours"] <= 100
    used = values["work per patch and step"]["ours"] * speed["ours"] / (values["matrix rate here"]["ours"] * 1e3)
    assert values["utilisation"]["ours"] == pytest.approx(100 * used)
    assert 0 < values["utilisation"]["ours"] < 100
