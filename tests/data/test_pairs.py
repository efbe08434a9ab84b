"""Folders of the same tissue on several scanners, in both layouts. All of it is drawn: nothing here is real tissue."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from midog.data.pairs import read_pairs
from midog.errors import DataError

GAINS = {"AT2": (1.0, 1.0, 1.0), "GT450": (0.8, 0.9, 1.0), "P1000": (1.0, 0.9, 0.7)}


def synthetic(seed: int, gain: tuple[float, ...], side: int = 160) -> Image.Image:
    """Drawn noise of one specimen, seen by a drawn scanner."""
    tissue = np.random.default_rng(seed).integers(20, 255, (side, side, 3))
    return Image.fromarray((tissue * np.array(gain)).astype(np.uint8))


def by_specimen(folder: Path, specimens: int = 3, side: int = 160) -> Path:
    """As SCORPION is said to be: a folder a specimen, a file a scanner."""
    for seed in range(specimens):
        place = folder / "slide_1" / f"sample_{seed}"
        place.mkdir(parents=True)
        for scanner, gain in GAINS.items():
            synthetic(seed, gain, side).save(place / f"{scanner}.png")
    return folder


def by_slide(folder: Path) -> Path:
    """As the registered PLISM tiles are named: a folder a slide, a file a tile."""
    for stain in ("GIVH", "GMH"):
        for scanner, gain in GAINS.items():
            place = folder / f"{stain}_{scanner}_to_GMH_S60"
            place.mkdir(parents=True)
            for seed in range(2):
                synthetic(seed, gain).save(place / f"tile_16_100_{seed}.png")
    (folder / "README.txt").write_text("synthetic")
    return folder


def test_a_folder_a_specimen(tmp_path: Path) -> None:
    pairs = read_pairs(by_specimen(tmp_path))
    assert pairs.scanners == ("AT2", "GT450", "P1000") and len(pairs) == 3
    assert pairs.names[0] == "slide_1/sample_0" and sorted(pairs.files[0]) == [0, 1, 2]
    assert pairs.text() == "3 specimens on 3 scanners\n  AT2: 3\n  GT450: 3\n  P1000: 3"


def test_a_folder_a_slide_pairs_equal_stains_alone(tmp_path: Path) -> None:
    pairs = read_pairs(by_slide(tmp_path))
    assert pairs.scanners == ("AT2", "GT450", "P1000")
    assert pairs.names == tuple(f"{stain}/tile_16_100_{at}" for stain in ("GIVH", "GMH") for at in (0, 1))
    for name, files in zip(pairs.names, pairs.files, strict=True):
        assert {file.parent.name.partition("_")[0] for file in files.values()} == {name.partition("/")[0]}


def test_a_specimen_on_one_scanner_is_left_out(tmp_path: Path) -> None:
    by_specimen(tmp_path)
    for scanner in ("GT450", "P1000"):
        (tmp_path / "slide_1" / "sample_1" / f"{scanner}.png").unlink()
    assert read_pairs(tmp_path).names == ("slide_1/sample_0", "slide_1/sample_2")


def test_draws_favour_no_scanner_and_crops_are_aligned(tmp_path: Path) -> None:
    pairs, rng = read_pairs(by_specimen(tmp_path)), np.random.default_rng(0)
    drawn = [pairs.draw(rng) for _ in range(900)]
    assert all(first != second for _, first, second in drawn)
    assert all(abs(count - 300) < 60 for count in Counter(first for _, first, _ in drawn).values())
    assert {specimen for specimen, *_ in drawn} == {0, 1, 2}
    one, other = pairs.crops(1, (0, 1), rng)
    assert one.shape == other.shape == (128, 128, 3)
    assert np.abs(one * np.array(GAINS["GT450"]) - other).max() < 1.01, "the same place"


def test_other_content_is_another_hash(tmp_path: Path) -> None:
    before = read_pairs(by_specimen(tmp_path)).sha256
    assert read_pairs(tmp_path).sha256 == before
    (tmp_path / "slide_1" / "sample_1" / "AT2.png").unlink()
    assert read_pairs(tmp_path).sha256 != before


def test_folders_without_pairs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder of same-tissue pairs"):
        read_pairs(tmp_path / "none")
    with pytest.raises(DataError, match="no same-tissue pairs"):
        read_pairs(tmp_path)
    for at in range(3):
        synthetic(at, (1, 1, 1)).save(tmp_path / f"image_{at}.png")
    with pytest.raises(DataError, match="image_0 is on one specimen alone"):
        read_pairs(tmp_path)


def test_images_that_are_too_small_or_not_aligned(tmp_path: Path) -> None:
    pairs = read_pairs(by_specimen(tmp_path / "small", side=100))
    with pytest.raises(DataError, match="100 × 100"):
        pairs.crops(0, (0, 1), np.random.default_rng(0))
    pairs = read_pairs(by_specimen(tmp_path / "odd"))
    synthetic(0, (1, 1, 1), 170).save(pairs.files[0][0])
    with pytest.raises(DataError, match="160 × 160, 170 × 170"):
        pairs.crops(0, (0, 1), np.random.default_rng(0))
