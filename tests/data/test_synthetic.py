from __future__ import annotations

from pathlib import Path

import numpy as np

from midog.data.checks import check
from midog.data.folds import assign, hold_out, make_folds
from midog.data.pixels import open_pixels
from midog.data.readers import read_layout
from midog.data.synthetic import draw, draw_patch


def test_drawn_patches_go_through_check_and_folds(tmp_path: Path) -> None:
    path = draw(tmp_path / "drawn", cases=12, per_case=3)
    result = check(read_layout([path.parent]), tmp_path / "cache")
    assert not result.problems and len(result.table) == 36
    assert len(set(result.table.column("scanner"))) == 3
    table = make_folds(hold_out(result.table, 0.2), "grouped:2:0")
    assert assign(table, "fold").names == ("0", "1") and len(assign(table, "scanner").names) == 3


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two, other = (draw(tmp_path / str(i), 2, 2, seed) for i, seed in enumerate((5, 5, 6)))
    for name in ("synthetic.csv", "patches/case001_01.png"):
        assert (one.parent / name).read_bytes() == (two.parent / name).read_bytes()
    assert (one.parent / "patches/case001_01.png").read_bytes() != (
        other.parent / "patches/case001_01.png"
    ).read_bytes()


def test_scanners_differ_in_tint_and_each_case_has_both_classes(tmp_path: Path) -> None:
    table = read_layout([draw(tmp_path / "drawn", cases=6, per_case=2)])
    assert all(set(table.labels[table.column("case") == case]) == {0, 1} for case in set(table.column("case")))
    mean = open_pixels(table, tmp_path / "cache")[:].mean(axis=(1, 2))
    warm, cool = (mean[table.column("scanner") == f"Scanner {s}"] for s in "CB")
    assert (warm[:, 0] - warm[:, 2]).min() > (cool[:, 0] - cool[:, 2]).max()


def test_the_figure_is_dark_and_central() -> None:
    for seed in range(20):
        patch = draw_patch(bool(seed % 2), np.random.default_rng(seed)).astype(float).mean(axis=2)
        centre, ring = patch[34:94, 34:94], patch[np.r_[0:20, 108:128]]
        assert patch.shape == (128, 128) and centre.min() < 90 < ring.mean()
