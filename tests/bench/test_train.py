"""The measurement runs on drawn patches and says what it measured; the speed itself is for a quiet machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from midog.bench.train import measure


def test_one_epoch_is_measured_beside_the_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIDOG_DATA", raising=False)
    monkeypatch.setenv("MIDOG_CACHE", str(tmp_path))
    (row,) = measure(patches=40, recipe="smoke", member="convnext")
    assert row["what"] == "convnext: one epoch of 40 patches"
    assert row["seconds"] > 0 and row["plain loop, seconds"] > 0
    assert 0 < float(row["outside forward, backward, optimizer"].rstrip("%")) < 100
    assert row["times faster"] > 0
