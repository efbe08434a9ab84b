"""The files of a run that others train: they do not change under them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from midog.data.patches import PatchTable
from midog.errors import UsageError
from midog.files import write_json
from midog.grid import read_grid
from midog.recipe import Recipe, load_recipe
from midog.run import open_run
from midog.training.grid import begin_grid
from midog.training.launch import Place, plan_run
from midog.training.machine import Machine
from midog.variation import vary_recipe

HERE = Place(Machine(threads=1), gpus=(), cluster=None, pretrained=None)
HOLD = """
import sys
from pathlib import Path
from midog.training.folder import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
LR = "each.training.lr=5e-5"


@contextmanager
def in_training(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process in the first epoch of a fold: it has the lock, and has written nothing."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        yield other
        other.communicate()


def said_by(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in ("recipe.yaml", "patches.csv", "manifest.json")}


@pytest.fixture
def prepared(tmp_path: Path, recipe: Recipe, table: PatchTable) -> Path:
    plan_run(recipe, table, tmp_path / "run", HERE)
    return tmp_path / "run"


def test_a_run_in_its_first_epoch_is_not_made_otherwise(prepared: Path, recipe_path: Path, table: PatchTable) -> None:
    before = said_by(prepared)
    recipe = load_recipe(recipe_path)
    recipe_path.write_text(recipe_path.read_text().replace("micro:", "other:"))
    changes: list[Callable[[], object]] = [
        lambda: plan_run(load_recipe(prepared / "recipe.yaml", [LR]), table, prepared, HERE),
        lambda: plan_run(load_recipe(prepared / "recipe.yaml", ["seed=1"]), table, prepared, HERE),
        lambda: plan_run(load_recipe(recipe_path), table, prepared, HERE),  # micro is gone
        lambda: plan_run(recipe, table.subset(range(1, len(table))), prepared, HERE),
    ]
    with in_training(prepared / "micro" / "fold_1") as other:
        for change in changes:
            with pytest.raises(UsageError, match="is being trained") as caught:
                change()
            assert caught.value.details[0].startswith(f"micro fold 1: process {other.pid} on ")
            assert "(micro)" in caught.value.problem and "(-o)" in caught.value.fix
        assert said_by(prepared) == before
    changes[0]()
    assert open_run(prepared).recipe["members"]["micro"]["training"]["lr"] == 5e-5


def test_members_and_the_blend_may_still_change_while_others_train(
    prepared: Path, recipe_path: Path, table: PatchTable
) -> None:
    text = recipe_path.read_text()
    recipe_path.write_text(f"{text}  second: {{backbone: test_vit, image: {{size: 64}}}}\nblend: equal\n")
    with in_training(prepared / "micro" / "fold_1"):
        plan_run(load_recipe(recipe_path), table, prepared, HERE)
    assert open_run(prepared).members == ("micro", "second")


@pytest.mark.parametrize(("listed", "refused"), [("17_0|PENDING|Priority", True), ("18_0|PENDING|Priority", False)])
def test_a_run_in_the_queue_is_not_made_otherwise(
    prepared: Path, table: PatchTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, refused: bool
) -> None:
    """SLURM is a script here that lists one job: nothing of SLURM itself is asked for."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "squeue").write_text(f"#!/bin/sh\necho '{listed}'\n")
    (tmp_path / "bin" / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    write_json(prepared / "slurm" / "jobs.json", {"jobs": [{"member": "micro", "fold": 0, "job": "17_0"}]})
    changed, before = load_recipe(prepared / "recipe.yaml", [LR]), said_by(prepared)
    if refused:
        with pytest.raises(UsageError, match="is being trained") as caught:
            plan_run(changed, table, prepared, HERE)
        assert caught.value.details == ("micro fold 0: SLURM job 17_0, Priority",) and said_by(prepared) == before
    else:
        plan_run(changed, table, prepared, HERE)
        assert said_by(prepared) != before


def test_who_prepares_a_run_at_the_same_time_waits(tmp_path: Path, recipe: Recipe, table: PatchTable) -> None:
    run = tmp_path / "run"
    with ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(lambda _: plan_run(recipe, table, run, HERE), range(4)))
    assert all(len(plan.missing) == 2 for plan in plans) and open_run(run).members == ("micro",)


def test_grids_that_begin_at_the_same_time_lose_no_run(tmp_path: Path, recipe_path: Path, table: PatchTable) -> None:
    def begin(seed: int) -> None:
        varied = vary_recipe(recipe_path, ("augment.dihedral=off,on",), (seed,), ())
        begin_grid(varied.grid, varied.base, table, tmp_path / "grid")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(begin, range(8)))
    grid = read_grid(tmp_path / "grid")
    assert grid is not None and sorted(grid.seeds) == list(range(8)) and len(grid.runs) == 16
