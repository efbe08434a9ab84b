"""Grids trained for real with a micro-model: ordinary runs, continued, extended, and what is refused or fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from midog.cli import run as midog
from midog.data.patches import PatchTable
from midog.errors import UsageError, WeightsError
from midog.recipe import load_recipe
from midog.run import open_run
from midog.training.grid import begin_grid, train_grid
from midog.training.launch import Place, carry_out, plan_run
from midog.training.machine import Machine
from midog.variation import vary_recipe

QUICK = ("each.training.epochs=1", "each.training.warmup=0")
TYPED = [word for change in QUICK for word in ("--set", change)]
DIHEDRAL = ("augment.dihedral=off,on",)
NAMES = ["dihedral=off,seed=0", "dihedral=on,seed=0", "dihedral=off,seed=1", "dihedral=on,seed=1"]


def train(
    recipe: Path,
    table: PatchTable,
    folder: Path,
    vary: tuple[str, ...] = DIHEDRAL,
    seeds: tuple[int, ...] = (0, 1),
    sets: tuple[str, ...] = QUICK,
) -> list[str]:
    """What was said while the grid was trained."""
    said: list[str] = []
    varied = vary_recipe(recipe, vary, seeds, sets)
    train_grid(varied.grid, varied.base, varied.recipes, table, folder, report=said.append, threads=1)
    return said


@pytest.fixture
def grid(tmp_path: Path, recipe_path: Path, table: PatchTable) -> Path:
    """Two values with two seeds, trained."""
    train(recipe_path, table, tmp_path / "grid")
    return tmp_path / "grid"


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_grid_is_ordinary_runs_and_the_same_call_again_does_nothing(
    grid: Path, recipe_path: Path, table: PatchTable
) -> None:
    for name in NAMES:
        run = open_run(grid / name)
        assert run.status().finished and run.recipe["seed"] == int(name[-1])
        assert (run.recipe["members"]["micro"]["augment"]["dihedral"] == "off") == ("off" in name)
    content = json.loads((grid / "grid.json").read_text())
    assert content["schema_version"] == 1 and content["seeds"] == [0, 1]
    assert content["factors"] == [{"key": "each.augment.dihedral", "name": "dihedral", "values": ["off", "on"]}]
    assert content["runs"][1] == {"run": "dihedral=on,seed=0", "values": {"dihedral": "on"}, "seed": 0}
    before = content_of(grid)
    said = train(recipe_path, table, grid)
    assert content_of(grid) == before and len(said) == 8 and all(line.endswith("done already") for line in said)


def test_what_is_missing_is_trained_and_a_grid_grows(grid: Path, recipe_path: Path, table: PatchTable) -> None:
    (grid / NAMES[2] / "micro" / "fold_1" / "done.json").unlink()
    done = [line for line in train(recipe_path, table, grid) if "done in" in line]
    assert len(done) == 1 and done[0].startswith(f"{NAMES[2]}: micro fold 1: ")
    said = train(recipe_path, table, grid, seeds=(1, 2))
    assert sum("done already" in line for line in said) == 4 and sum("done in" in line for line in said) == 4
    content = json.loads((grid / "grid.json").read_text())
    assert content["seeds"] == [1, 2, 0] and len(content["runs"]) == 6


def test_another_recipe_other_data_or_other_keys_are_refused_before_anything_is_done(
    grid: Path, recipe_path: Path, table: PatchTable
) -> None:
    before = content_of(grid)
    with pytest.raises(UsageError) as error:
        train(recipe_path, table, grid, sets=(*QUICK, "each.training.lr=5e-4"))
    assert error.value.details == ("recipe.members.micro.training.lr: 0.001 made it, 0.0005 is asked for",)
    with pytest.raises(UsageError) as error:
        train(recipe_path, table.subset(table.column("case") != table.patches[0].case), grid)
    assert [line.partition(":")[0] for line in error.value.details] == ["data_sha256", "folds_sha256"]
    with pytest.raises(UsageError, match=r"a grid over each\.augment\.dihedral, not over each\.image\.crop"):
        train(recipe_path, table, grid, vary=("image.crop=64,32",))
    with pytest.raises(UsageError, match="is a run, not a folder for a grid"):
        train(recipe_path, table, grid / NAMES[0])
    assert content_of(grid) == before


def test_a_run_that_fails_leaves_the_others_their_turn(tmp_path: Path, recipe_path: Path, table: PatchTable) -> None:
    lost = tmp_path / "lost.safetensors"
    vary = (f"pretrained={lost},random",)
    with pytest.raises(WeightsError, match="1 of 2 runs are not done") as error:
        train(recipe_path, table, tmp_path / "grid", vary, (0,))
    assert str(lost) in error.value.details[0] and error.value.fix.endswith("only these are trained again")
    status = [open_run(path.parent).status() for path in sorted((tmp_path / "grid").glob("*/recipe.yaml"))]
    assert [one.finished for one in status] == [False, True]

    from midog.models.build import build_backbone
    from midog.models.weights import write_tensors

    write_tensors(lost, build_backbone("test_efficientnet", "random", seed=3).state_dict())
    said = train(recipe_path, table, tmp_path / "grid", vary, (0,))
    assert sum("done in" in line for line in said) == 2 and sum("done already" in line for line in said) == 2


def test_the_commands(
    tmp_path: Path,
    recipe_path: Path,
    table_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """train, status and compare as typed; one fold first, then the rest."""
    monkeypatch.chdir(tmp_path)
    typed = ["train", str(recipe_path), str(table_path), "-o", "runs/ablation", "--vary", "folds=fold,scanner"]
    typed += ["--vary", "image.crop=64,32", *TYPED, "--threads", "1"]
    assert midog([*typed, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "4 runs, of which the first is proved:\nfolds=fold,crop=64,seed=0\n" in out and "crop: 64" in out
    assert not Path("runs").exists()
    assert midog([*typed, "--seeds", "0", "--fold", "0"]) == 0
    assert "next: midog compare runs/ablation --by scanner" in capsys.readouterr().err
    assert midog(["status", "runs/ablation", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["folds"], row["done"]) for row in rows] == [(2, 1), (2, 1), (3, 1), (3, 1)]
    assert midog(["compare", "runs/ablation"]) == 3 and "no run of this grid is finished" in capsys.readouterr().err
    assert midog([*typed, "--seeds", "0,1"]) == 0
    assert midog(["compare", "runs/ablation"]) == 3  # other folds: not patch by patch
    assert "folds=scanner*" in capsys.readouterr().err
    chosen = sorted(map(str, Path("runs/ablation").glob("folds=scanner*")))
    assert midog(["compare", *chosen, "--by", "scanner"]) == 0
    out = capsys.readouterr().out
    assert "crop: 64 → 32" in out and "Scanner B" in out and "the bootstrap drew cases, and 2 seeds" in out
    assert midog(["compare", *chosen, "--json"]) == 0
    effects = json.loads(capsys.readouterr().out)["effects"]
    assert [effect["metric"] for effect in effects] == ["roc_auc", "log_loss", "balanced_accuracy"]
    assert effects[0]["n"] == 48 and effects[0]["runs"] == 2
    assert midog(["compare", *chosen[:2]]) == 0 and "B - A" in capsys.readouterr().out
    assert midog(["train", str(recipe_path), str(table_path), "--seeds", "0,1"]) == 2
    assert midog([*typed, "--seeds", "a"]) == 2 and midog(["compare", chosen[0]]) == 2
    assert midog(["compare", "runs/ablation", "--truth", str(table_path)]) == 2


def test_the_status_of_a_grid_shows_runs_that_have_not_begun(
    grid: Path, recipe_path: Path, table: PatchTable, capsys: pytest.CaptureFixture[str]
) -> None:
    varied = vary_recipe(recipe_path, DIHEDRAL, (0, 1, 2), QUICK)
    begin_grid(varied.grid, varied.base, table, grid)
    assert midog(["status", str(grid), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["done"] for row in rows] == [2, 2, 2, 2, 0, 0] and rows[4]["run"].endswith("dihedral=off,seed=2")


def test_the_folds_of_several_runs_share_the_slots(tmp_path: Path, recipe_path: Path, table: PatchTable) -> None:
    """Two places on one GPU, which need not be there: the processes then take the processor."""
    recipe = load_recipe(recipe_path, [*QUICK])
    said: list[str] = []
    place = Place(Machine(threads=1), gpus=(0, 0), cluster=None, pretrained=None)
    plans = [plan_run(recipe, table, tmp_path / name, place, folds=[0], report=said.append) for name in ("a", "b")]
    carry_out(plans, place)
    models = [tmp_path / name / "micro" / "fold_0" / "model.safetensors" for name in ("a", "b")]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert [plan.tally.trained for plan in plans] == [1, 1] and len(said) == 2
