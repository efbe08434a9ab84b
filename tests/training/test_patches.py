"""The two sides of a fold, and where Fourier targets come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from augment.fourier import patch_targets
from midog.data.patches import PatchTable
from midog.errors import DataError, UsageError
from midog.recipe import Recipe, load_recipe
from midog.training.launch import train_recipe
from midog.training.patches import FoldPatches, fold_patches
from midog.training.source import gather

FOURIER = "each.augment.fourier={p: 1, targets: %s}"


def fold_of(recipe: Recipe, table: PatchTable, k: int = 0) -> FoldPatches:
    source = gather(recipe, table)
    return fold_patches(recipe.members["micro"], k, source.table, source.assignment, source.pixels)


def test_both_sides_have_their_own_cases(recipe: Recipe, table: PatchTable) -> None:
    fold = fold_of(recipe, table, 1)
    assert set(fold.left_out_ids) == {patch.patch_id for patch in table if patch.fold == 1}
    assert sorted([*fold.samples.rows, *fold.left_out.rows]) == list(range(len(table)))
    assert fold.labels.tolist() == [patch.label for patch in table if patch.fold == 0]


def test_votes_become_soft_targets_when_asked_for(recipe_path: Path, table: PatchTable) -> None:
    voted = table.with_patches(replace(patch, votes="1/3" if patch.label == 0 else "2/3") for patch in table)
    hard = fold_of(load_recipe(recipe_path), voted)
    soft = fold_of(load_recipe(recipe_path, ["each.training.soft_labels=true"]), voted)
    assert set(hard.samples.targets.tolist()) == {0.0, 1.0}
    assert np.allclose(soft.samples.targets, np.where(hard.labels == 1, 2 / 3, 1 / 3))
    assert np.array_equal(soft.labels, hard.labels), "sampling goes by the label"


@pytest.mark.parametrize("column", ["fold", "scanner"])
def test_scanner_targets_are_training_patches_of_other_scanners(
    recipe_path: Path, table: PatchTable, column: str
) -> None:
    recipe = load_recipe(recipe_path, [f"folds={column}", FOURIER % "scanner"])
    source = gather(recipe, table)
    fold = fold_of(recipe, table)
    scanners = np.array([str(name) for name in source.table.column("scanner")])
    block_of = {t.block.tobytes(): at for at, t in enumerate(patch_targets(source.pixels[:]))}
    for row, augmentation in zip(fold.samples.rows, fold.samples.augmentations, strict=True):
        sources = [block_of[target.block.tobytes()] for target in augmentation.targets]
        assert sources and set(sources) <= set(fold.samples.rows), "nothing that is left out"
        assert scanners[row] not in set(scanners[sources])


def test_scanner_targets_need_two_scanners(recipe_path: Path, table: PatchTable) -> None:
    recipe = load_recipe(recipe_path, [FOURIER % "scanner"])
    one = table.with_patches(replace(patch, scanner="A") for patch in table)
    with pytest.raises(DataError, match="two scanners"):
        fold_of(recipe, one)
    none = table.with_patches(replace(patch, scanner="") for patch in table)
    with pytest.raises(DataError, match="scanner of every patch"):
        fold_of(recipe, none)


def test_a_folder_of_targets_is_used_and_its_content_is_part_of_the_fold(
    recipe_path: Path, table: PatchTable, tmp_path: Path
) -> None:
    folders = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        noise = np.random.default_rng(len(folders)).integers(0, 255, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "photo.png")
        folders.append(folder)
    quick = ["each.training.epochs=1", "each.training.warmup=0"]
    recipe = load_recipe(recipe_path, [*quick, FOURIER % folders[0]])
    assert len(fold_of(recipe, table).samples.augmentations[0].targets) == 1
    train_recipe(recipe, table, tmp_path / "run", folds=[0], threads=1)
    with pytest.raises(UsageError) as caught:
        train_recipe(
            load_recipe(recipe_path, [*quick, FOURIER % folders[1]]), table, tmp_path / "run", folds=[0], threads=1
        )
    assert any("targets_sha256" in line for line in caught.value.details)


def test_absent_targets_are_an_error(recipe_path: Path, table: PatchTable, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_path, [FOURIER % (tmp_path / "nowhere")])
    with pytest.raises(DataError):
        fold_of(recipe, table)


def test_a_side_without_a_class_is_an_error(recipe: Recipe, table: PatchTable) -> None:
    source = gather(recipe, table)
    index = np.where(np.asarray(source.table.labels) == 1, 0, source.assignment.index).astype(np.int32)
    with pytest.raises(DataError, match="no atypical patch to train on"):
        fold_patches(recipe.members["micro"], 0, source.table, replace(source.assignment, index=index), source.pixels)
