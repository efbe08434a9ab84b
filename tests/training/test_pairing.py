"""What an auxiliary loss sees of a batch: codes, views in other styles, external pairs; all of the training side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from augment.reinhard import colour_statistics, reinhard
from midog.data.patches import PatchTable
from midog.files import read_json
from midog.recipe import Recipe, load_recipe
from midog.training.batches import epoch_batches
from midog.training.launch import train_recipe
from midog.training.pairing import FoldPairing
from midog.training.patches import FoldPatches, fold_patches, sampling
from midog.training.sampling import draw_epoch
from midog.training.source import gather

KEY = (0, "micro", 0, 0)


def contrast(path: Path, words: str) -> Recipe:
    return load_recipe(path, [f"each.auxiliary={{kind: scanner_contrast, {words}}}"])


def fold_of(recipe: Recipe, table: PatchTable, images: Any = None) -> tuple[FoldPatches, FoldPairing]:
    source = gather(recipe, table)
    patches = fold_patches(recipe.members["micro"], 0, source.table, source.assignment, images or source.pixels)
    assert patches.pairing is not None
    return patches, patches.pairing


@pytest.mark.parametrize("style", ["reinhard", "fourier"])
@pytest.mark.parametrize("workers", [0, 2])
def test_views_are_the_patches_themselves_in_the_style_of_another_scanner(
    style: str, workers: int, recipe_path: Path, table: PatchTable
) -> None:
    patches, pairing = fold_of(contrast(recipe_path, f"mode: pseudo, style: {style}"), table)
    order = np.arange(16)
    with_views = list(epoch_batches(patches.samples, order, 8, KEY, workers, pairing))
    without = list(epoch_batches(patches.samples, order, 8, KEY, workers))
    assert len(with_views) == 2 and all(not batch.extra for batch in without)
    for batch, plain, rows in zip(with_views, without, (order[:8], order[8:]), strict=True):
        assert np.array_equal(batch.images, plain.images), "the task sees what it always saw"
        extra = batch.extra
        assert extra["views"].shape == batch.images.shape and extra["views"].dtype == np.uint8
        assert extra["own_specimens"].tolist() == extra["view_specimens"].tolist() == rows.tolist()
        assert extra["own_labels"].tolist() == extra["view_labels"].tolist() == batch.targets.tolist()
        assert not (extra["own_confounders"] == extra["view_confounders"]).any()
        for image, view, scanner in zip(batch.images, extra["views"], extra["view_confounders"], strict=True):
            assert any(np.array_equal(restyle(image), view) for restyle in pairing.styles[scanner])
            other = [restyle(image) for restyle in pairing.styles[(scanner + 1) % 3]]
            assert not any(np.array_equal(image, view) for image in other)


class Guarded:
    """Images of which the left-out rows must not be read."""

    def __init__(self, images: Any, forbidden: np.ndarray) -> None:
        self.images, self.forbidden = images, set(forbidden.tolist())

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        assert not set(np.asarray(rows).ravel().tolist()) & self.forbidden, "a left-out patch was read"
        return self.images[rows]


def test_styles_are_those_of_training_patches(recipe_path: Path, table: PatchTable) -> None:
    recipe = contrast(recipe_path, "mode: pseudo")
    source = gather(recipe, table)
    guarded = Guarded(source.pixels, np.flatnonzero(source.assignment.index == 0))
    patches, pairing = fold_of(recipe, table, guarded)
    assert pairing.levels == ("Scanner A", "Scanner B", "Scanner C")
    probe = source.pixels[int(patches.samples.rows[0])]
    for code, styles in enumerate(pairing.styles):
        rows = patches.samples.rows[pairing.confounders == code]
        expected = {reinhard(probe, *colour_statistics(source.pixels[int(row)])).tobytes() for row in rows}
        assert {style(probe).tobytes() for style in styles} == expected


@pytest.mark.parametrize("mode", ["pseudo", "cross_scanner_label"])
def test_batches_hold_every_scanner_equally_often_in_each_class(
    mode: str, recipe_path: Path, table: PatchTable
) -> None:
    recipe = contrast(recipe_path, f"mode: {mode}")
    patches, pairing = fold_of(recipe, table)
    kind, labels, names = sampling(recipe.members["micro"], patches)
    order = draw_epoch(kind, labels, names, 120, np.random.default_rng(0))
    for start in range(0, 120, 12):
        drawn = order[start : start + 12]
        cells = list(zip(labels[drawn].tolist(), pairing.confounders[drawn].tolist(), strict=True))
        assert sorted(cells) == sorted((label, scanner) for label in (0, 1) for scanner in range(3) for _ in range(2))
    assert ("views" in pairing(order[:4], np.zeros((4, 128, 128, 3), np.uint8), rngs(4))) == (mode == "pseudo")


def rngs(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(at) for at in range(count)]


def test_an_adversary_leaves_the_sampler_as_it_is(recipe_path: Path, table: PatchTable) -> None:
    recipe = load_recipe(recipe_path, ["each.auxiliary={kind: domain_adversarial, confounder: domain}"])
    patches, pairing = fold_of(recipe, table)
    kind, _, names = sampling(recipe.members["micro"], patches)
    assert kind == "balanced" and names == patches.domains
    assert [pairing.levels[code] for code in pairing.confounders] == list(patches.domains)


@pytest.fixture
def synthetic_pairs(tmp_path: Path) -> Path:
    """Four drawn specimens on three drawn scanners: not tissue."""
    for specimen in range(4):
        folder = tmp_path / "pairs" / f"specimen_{specimen}"
        folder.mkdir(parents=True)
        for scanner in range(3):
            image = np.random.default_rng(specimen).integers(60, 250, (128, 128, 3)) - 20 * scanner
            Image.fromarray(image.astype(np.uint8)).save(folder / f"scanner_{scanner}.png")
    return tmp_path / "pairs"


def test_external_pairs_come_two_by_two(synthetic_pairs: Path, recipe_path: Path, table: PatchTable) -> None:
    recipe = contrast(recipe_path, f"mode: paired, pairs: {synthetic_pairs}")
    patches, pairing = fold_of(recipe, table)
    assert pairing.levels == ("scanner_0", "scanner_1", "scanner_2")
    assert sampling(recipe.members["micro"], patches)[0] == "balanced", "the task's batches stay as they are"
    (batch,) = epoch_batches(patches.samples, np.arange(9), 9, KEY, 0, pairing)
    extra = batch.extra
    assert set(extra) == {"views", "view_labels", "view_specimens", "view_confounders"}
    specimens, scanners = extra["view_specimens"], extra["view_confounders"]
    assert np.array_equal(specimens[0:8:2], specimens[1:8:2]) and (scanners[0:8:2] != scanners[1:8:2]).all()
    for at in range(0, 8, 2):
        shift = 20 * (int(scanners[at + 1]) - int(scanners[at]))
        assert (extra["views"][at].astype(int) - extra["views"][at + 1] == shift).all(), "the same place, turned alike"


def test_training_on_external_pairs_and_its_identity(
    synthetic_pairs: Path, recipe_path: Path, table: PatchTable, tmp_path: Path
) -> None:
    words = f"{{kind: scanner_contrast, mode: paired, pairs: {synthetic_pairs}}}"
    recipe = load_recipe(recipe_path, ["each.training.epochs=2", f"each.auxiliary={words}"])
    train_recipe(recipe, table, tmp_path / "run", folds=[0], threads=1)
    identity = read_json(tmp_path / "run" / "micro" / "fold_0" / "done.json")["identity"]
    assert len(identity["pairs_sha256"]) == 64
