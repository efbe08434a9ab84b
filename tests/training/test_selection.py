"""The epoch is chosen on training cases alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from midog.data.folds import make_folds
from midog.data.patches import PatchTable
from midog.data.readers import read_layout
from midog.data.synthetic import draw
from midog.errors import DataError, UsageError
from midog.files import read_json
from midog.recipe import load_recipe
from midog.status import read_log
from midog.training.launch import train_recipe
from midog.training.member import Training
from midog.training.patches import fold_patches
from midog.training.selection import Best, plateau_factor
from midog.training.source import gather

INNER = ("each.training.select=inner", "each.training.patience=3", "each.training.schedule=plateau")


@pytest.fixture(scope="module")
def many_cases(tmp_path_factory: pytest.TempPathFactory) -> PatchTable:
    """120 drawn patches of 40 cases: enough to set a tenth aside."""
    folder = tmp_path_factory.mktemp("many")
    return make_folds(read_layout([draw(folder, cases=40, per_case=3)]), "grouped:2:0")


def test_inner_cases_are_training_cases_that_are_not_trained_on(many_cases: PatchTable, recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path, INNER)
    source = gather(recipe, many_cases)
    patches = fold_patches(recipe.members["micro"], 0, source.table, source.assignment, source.pixels)
    assert patches.inner is not None
    case = many_cases.column("case")
    sides = [set(case[rows]) for rows in (patches.samples.rows, patches.inner.images.rows, patches.left_out.rows)]
    assert all(sides)
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert set.union(*sides) == set(case)
    assert set(patches.inner.targets) == {0.0, 1.0}


def test_the_best_inner_epoch_becomes_the_fold_model(many_cases: PatchTable, recipe_path: Path, tmp_path: Path) -> None:
    run = train_recipe(load_recipe(recipe_path, INNER), many_cases, tmp_path / "run", folds=[0], threads=1)
    folder = run.fold_folder("micro", 0)
    losses = [line["inner_loss"] for line in read_log(folder)]
    chosen = read_json(folder / "done.json")["epoch"]
    assert chosen == int(np.argmin(losses)) + 1
    assert len(losses) == min(20, chosen + 3)


def test_too_few_cases_say_so(table: PatchTable, recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path, INNER)
    source = gather(recipe, table)
    with pytest.raises(DataError, match="too few training cases"):
        fold_patches(recipe.members["micro"], 0, source.table, source.assignment, source.pixels)


def test_best_keeps_the_weights_of_the_lowest_loss() -> None:
    network = nn.Linear(1, 1)
    best = Best(network)
    for value, inner in ((1.0, 0.9), (2.0, 0.5), (3.0, 0.5), (4.0, 0.7)):
        with torch.no_grad():
            network.weight.fill_(value)
        best.add(inner, network)
    assert [best.stop(patience) for patience in (0, 2, 3)] == [False, True, False]
    best.apply(network)
    assert network.weight.item() == 2.0


def test_the_plateau_is_that_of_torch() -> None:
    losses = np.abs(np.sin(np.arange(40))) + 0.1
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=3)
    for at, value in enumerate(losses):
        schedule.step(float(value))
        assert plateau_factor(losses[: at + 1].tolist()) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_looking_at_the_inner_loss_must_be_asked_for() -> None:
    with pytest.raises(UsageError, match="look at the inner loss"):
        Training(patience=3)
