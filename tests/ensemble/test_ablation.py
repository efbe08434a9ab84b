"""Ablations on drawn logits: known effects come back, nothing comes of nothing, seeds count, what lacks is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble.ablation import Ablation, Effect, _with_seeds, compare_grid
from ensemble.compare import compare, load_scored
from midog.data.patches import PatchTable
from midog.errors import DataError, UsageError
from midog.grid import Grid, make_grid, write_grid
from midog.metrics import scores
from midog.report.ablation import ablation_text

FACTORS = (("each.augment.fisheye", ["off", "on"]), ("each.image.crop", [128, 64]))
SEEDS = (0, 1, 2)
Signal = Callable[[tuple[Any, ...], int], float]


@pytest.fixture(scope="module")
def table(make: Any, tmp_path_factory: pytest.TempPathFactory) -> PatchTable:
    return make.table(tmp_path_factory.mktemp("ablation"), n=800, cases=40)


def write_runs(
    make: Any, folder: Path, table: PatchTable, signal: Signal, factors: Any = FACTORS, seeds: Sequence[int] = SEEDS
) -> Grid:
    """A finished grid: what a patch is like is common to all runs, the noise of training is each run's own."""
    grid = make_grid(factors, seeds)
    rng = np.random.default_rng(0)
    common = rng.normal(size=(len(table), 1))
    for number, run in enumerate(grid.runs):
        logits = make.logits(table, signal(run.values, run.seed), 100 + number, noise=0.4) + common
        make.run(folder / run.name, table, {"net": logits})
    write_grid(folder, grid)
    return grid


@pytest.fixture(scope="module")
def crop_helps(make: Any, table: PatchTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fisheye is worth nothing, the crop much."""
    folder = tmp_path_factory.mktemp("grid") / "runs"
    write_runs(make, folder, table, lambda values, seed: 1.3 if values[1] == 64 else 0.8)
    return folder


def of(found: Ablation, change: str, group: str = "all") -> dict[str, Effect]:
    return {effect.metric: effect for effect in found.effects if effect.change == change and effect.group == group}


def test_a_known_difference_comes_back_and_noise_stays_noise(crop_helps: Path) -> None:
    found = compare_grid([crop_helps])
    assert (found.runs, found.seeds, found.left_out) == (12, SEEDS, ())
    assert {e.verdict for e in of(found, "fisheye: off → on").values()} == {"noise"}
    crop = of(found, "crop: 128 → 64")
    assert {e.verdict for e in crop.values()} == {"better"}
    assert crop["roc_auc"].difference > 0.05 and crop["log_loss"].difference < -0.05
    assert crop["roc_auc"].runs == 6 and crop["roc_auc"].n == 800
    assert {e.verdict for e in of(found, "fisheye=on,crop=64").values()} == {"better"}
    assert {e.verdict for e in of(found, "fisheye=on,crop=128").values()} == {"noise"}
    assert found.first == "fisheye=off,crop=128"


def test_an_effect_is_the_mean_over_the_others_and_the_seeds(crop_helps: Path) -> None:
    def auroc(fisheye: str, crop: int, seed: int) -> float:
        one = load_scored(crop_helps / f"fisheye={fisheye},crop={crop},seed={seed}")
        return scores(one.table.labels, one.confidence, one.predicted).roc_auc

    gains = [auroc(fisheye, 64, seed) - auroc(fisheye, 128, seed) for fisheye, seed in product(("off", "on"), SEEDS)]
    found = of(compare_grid([crop_helps]), "crop: 128 → 64")["roc_auc"]
    assert found.difference == pytest.approx(np.mean(gains), abs=1e-12)
    assert found.interval.low < found.difference < found.interval.high


def test_within_groups(crop_helps: Path) -> None:
    found = compare_grid([crop_helps], by="scanner")
    groups = {e.group: e for e in found.effects if e.metric == "roc_auc" and e.change == "crop: 128 → 64"}
    assert set(groups) == {"all", "CS2", "XR"} and groups["CS2"].n + groups["XR"].n == 800
    assert all(e.group == "all" for e in found.effects if e.part == "combination")
    assert groups["XR"].verdict == "better"
    wide, narrow = (groups[name].interval for name in ("XR", "all"))
    assert wide.high - wide.low > narrow.high - narrow.low
    with pytest.raises(UsageError, match="did you mean scanner"):
        compare_grid([crop_helps], by="scaner")


def test_named_runs_folder_and_grid_file_are_the_same(crop_helps: Path) -> None:
    whole = compare_grid([crop_helps])
    assert compare_grid(sorted(crop_helps.glob("*"))).effects == whole.effects  # what a shell makes of runs/ablation/*
    assert compare_grid([f"{crop_helps}:net"]).effects == whole.effects
    part = compare_grid(sorted(crop_helps.glob("*crop=64*")))  # what does not vary there is no factor
    assert {e.change for e in part.effects} == {"fisheye: off → on"} and part.runs == 6


def test_the_luck_of_seeds_is_part_of_the_interval(make: Any, table: PatchTable, tmp_path: Path) -> None:
    """One lucky seed of three: the mean is higher, and for the cases at hand surely so; for other seeds it is not."""
    lucky = lambda values, seed: 1.4 if values[0] == "on" and seed == 2 else 0.8  # noqa: E731
    write_runs(make, tmp_path / "runs", table, lucky, FACTORS[:1])
    found = compare_grid([tmp_path / "runs"])
    assert found.drawn == "cases, and 3 seeds for each combination"
    auroc = of(found, "fisheye: off → on")["roc_auc"]
    assert auroc.verdict == "noise" and auroc.difference > 0.02 and auroc.interval.low < 0.02
    alone = [load_scored(tmp_path / "runs" / f"fisheye={word},seed=2") for word in ("off", "on")]
    assert compare(*(one.name for one in alone)).verdict == "B better"
    steady = lambda values, seed: 1.0 if values[0] == "on" else 0.8  # noqa: E731
    write_runs(make, tmp_path / "steady", table, steady, FACTORS[:1])
    assert of(compare_grid([tmp_path / "steady"]), "fisheye: off → on")["roc_auc"].verdict == "better"


def test_seeds_are_drawn_so_that_their_spread_is_right() -> None:
    """Around the mean of S seeds: Student's t of the pooled spread, and each combination by itself."""
    rng = np.random.default_rng(0)
    values = 0.8 + 0.02 * rng.normal(size=(8, 3)) + 0.1 * np.arange(8)[:, None]
    n = 40_000
    drawn = _with_seeds(np.broadcast_to(values[..., None], (8, 3, n)), seed=0)
    spread = np.sqrt(values.var(axis=1, ddof=1).mean())
    np.testing.assert_allclose(drawn.mean(axis=1), values.mean(axis=1), atol=3e-4)
    difference = (drawn[1] - drawn[0] - (values[1] - values[0]).mean()) / (spread * np.sqrt(2 / 3))
    assert difference.var() == pytest.approx(16 / 14, rel=0.03)  # of t with 16 degrees of freedom
    assert np.quantile(np.abs(difference), 0.95) == pytest.approx(2.12, rel=0.03)
    assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.02
    assert _with_seeds(values[:, :1, None], seed=0).tolist() == values[:, :1].tolist()


def test_one_seed_draws_folds_and_cases_as_compare_does(make: Any, table: PatchTable, tmp_path: Path) -> None:
    grid = write_runs(make, tmp_path / "g", table, lambda values, _: 1.0 + 0.2 * (values[0] == "on"), FACTORS[:1], [0])
    found = compare_grid([tmp_path / "g"])
    assert found.drawn == "folds and cases"
    pair = {d.metric: d for d in compare(*(tmp_path / "g" / run.name for run in grid.runs)).differences}
    for metric, effect in of(found, "fisheye: off → on").items():
        assert effect.interval == pair[metric].interval and effect.difference == pair[metric].difference


def test_three_values_each_against_the_first(make: Any, table: PatchTable, tmp_path: Path) -> None:
    factor = [("each.augment.fourier.beta", [[0.01, 0.01], [0.05, 0.05], [0.09, 0.09]])]
    write_runs(make, tmp_path / "g", table, lambda values, _: 0.8 + 4 * values[0][0], factor)
    found = [e for e in compare_grid([tmp_path / "g"]).effects if e.metric == "roc_auc"]
    assert [e.change.partition("-")[0] for e in found] == ["beta: 0.01"] * 2
    assert found[0].baseline == found[1].baseline and found[0].difference < found[1].difference


def test_runs_outside_of_a_grid_are_compared_with_the_first(make: Any, table: PatchTable, tmp_path: Path) -> None:
    runs = [
        make.run(tmp_path / name, table, {"net": make.logits(table, signal, at)})
        for at, (name, signal) in enumerate({"a": 1.0, "b": 1.0, "c": 0.4}.items())
    ]
    found = compare_grid(runs)
    a, b, c = map(str, runs)
    assert {e.verdict for e in of(found, f"run: {a} → {b}").values()} == {"noise"}
    assert {e.verdict for e in of(found, f"run: {a} → {c}").values()} == {"worse"}
    assert found.seeds == () and "3 runs;" in ablation_text(found)
    alone = compare_grid(runs, folds=["0"])  # one fold model each, which cases alone would call worse
    assert {e.verdict for e in of(alone, f"run: {a} → {c}").values()} == {"one training"}
    assert alone.drawn == "cases" and "may be luck" in ablation_text(alone)


def test_what_is_not_finished_is_left_out_and_named(make: Any, table: PatchTable, tmp_path: Path) -> None:
    grid = write_runs(make, tmp_path / "g", table, lambda values, _: 1.0)
    (tmp_path / "g" / "fisheye=on,crop=64,seed=2" / "net" / "fold_1" / "done.json").unlink()
    found = compare_grid([tmp_path / "g"])
    assert found.seeds == (0, 1) and found.runs == 8
    assert sorted(Path(spec).name for spec in found.left_out) == sorted(r.name for r in grid.runs if r.seed == 2)
    for run in grid.runs:  # a combination that never finished takes its pairs with it, and no more
        if run.values == ("on", 64):
            (tmp_path / "g" / run.name / "manifest.json").unlink()
    found = compare_grid([tmp_path / "g"])
    assert found.seeds == SEEDS and found.runs == 9
    assert of(found, "crop: 128 → 64")["roc_auc"].runs == 3
    for run in grid.runs:
        (tmp_path / "g" / run.name / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(DataError, match="no run of this grid is finished"):
        compare_grid([tmp_path / "g"])


def test_folds_that_are_done_can_be_compared_alone(make: Any, table: PatchTable, tmp_path: Path) -> None:
    grid = write_runs(make, tmp_path / "g", table, lambda values, _: 1.3 if values[1] == 64 else 0.8)
    whole = compare_grid([tmp_path / "g"], folds=["0"])
    for run in grid.runs:
        (tmp_path / "g" / run.name / "net" / "fold_1" / "done.json").unlink()
    with pytest.raises(DataError, match="no run of this grid is finished") as error:
        compare_grid([tmp_path / "g"])
    assert "--fold" in error.value.fix
    part = compare_grid([tmp_path / "g"], folds=["0"])
    assert part == whole and part.runs == 12
    effect = of(part, "crop: 128 → 64")["roc_auc"]
    assert effect.verdict == "better" and effect.n == int((table.folds == 0).sum())
    with pytest.raises(UsageError, match="fold"):
        compare_grid([tmp_path / "g"], folds=["scanner"])


def test_a_member_trained_alone_is_compared_as_grid_and_member(make: Any, table: PatchTable, tmp_path: Path) -> None:
    grid = make_grid(FACTORS[1:], SEEDS)
    for run in grid.runs:
        logits = make.logits(table, 1.3 if run.values == (64,) else 0.8, run.seed)
        make.run(tmp_path / "g" / run.name, table, {"net": logits, "other": logits})
        (tmp_path / "g" / run.name / "other" / "fold_1" / "done.json").unlink()
    write_grid(tmp_path / "g", grid)
    with pytest.raises(DataError, match="no run of this grid is finished") as error:
        compare_grid([tmp_path / "g"])
    assert "GRID:MEMBER" in error.value.fix
    found = compare_grid([f"{tmp_path / 'g'}:net"])
    assert found.runs == 6 and of(found, "crop: 128 → 64")["roc_auc"].verdict == "better"


def test_runs_that_differ_in_patches_or_folds_are_refused(make: Any, table: PatchTable, tmp_path: Path) -> None:
    write_runs(make, tmp_path / "g", table, lambda values, _: 1.0, FACTORS[:1])
    logits = make.logits(table, 1.0, 1)
    keep = np.arange(len(table)) > 0
    make.run(tmp_path / "g" / "fisheye=on,seed=1", table.subset(keep), {"net": logits[keep]})
    turned = table.with_patches(replace(patch, fold=1 - patch.fold) for patch in table)
    make.run(tmp_path / "g" / "fisheye=on,seed=2", turned, {"net": logits})
    with pytest.raises(DataError, match="cannot be compared patch by patch") as error:
        compare_grid([tmp_path / "g"])
    assert any("seed=1/net: 1 patches missing" in line for line in error.value.details)
    assert any("seed=2/net: 800 patches in other folds" in line for line in error.value.details)


def test_runs_of_two_grids_and_runs_where_nothing_varies(
    crop_helps: Path, make: Any, table: PatchTable, tmp_path: Path
) -> None:
    write_runs(make, tmp_path / "g", table, lambda values, _: 1.0, FACTORS[:1])
    with pytest.raises(UsageError, match="not of one grid"):
        compare_grid([crop_helps, tmp_path / "g"])
    with pytest.raises(UsageError, match="nothing varies"):
        compare_grid(sorted((tmp_path / "g").glob("fisheye=on*")))
    make.run(tmp_path / "g" / "stray", table, {"net": make.logits(table, 1.0, 1)})
    with pytest.raises(UsageError, match="not runs of the grid"):
        compare_grid([tmp_path / "g", tmp_path / "g" / "stray"])
