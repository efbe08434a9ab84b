from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from augment.views import VIEW_SETS
from ensemble.blend import combine, read_blend
from ensemble.crossfit import JOURNAL_FILE, blend_oof, blend_rows, blend_runs, predict
from ensemble.fit import BlendSettings, Views
from ensemble.oof import OofSet, align
from ensemble.predictions import read_scored
from ensemble.result import OOF_BLEND_FILE, BlendResult
from midog.data.patches import PatchTable
from midog.errors import DataError, UsageError
from midog.files import sha256_file
from midog.metrics import scores
from midog.report.from_blend import VIEWS

FEW = BlendSettings(trials=60)


@pytest.fixture(scope="module")
def few(kept_run: Path) -> BlendResult:
    """A blend that several tests look at."""
    return blend_runs([kept_run], FEW)


def stacked(table: PatchTable, *members: np.ndarray) -> OofSet:
    names = tuple(f"m{i}" for i in range(len(members)))
    return OofSet(table, table.folds, names, np.stack(members, axis=1), ())


def test_tuned_weights_beat_equal_ones_where_a_member_knows_nothing(kept_run: Path) -> None:
    result = blend_runs([kept_run], BlendSettings(trials=200))
    assert result.weights["noise"] < 0.1 < result.weights["fair"] < result.weights["good"]
    found = result.scores()
    assert list(found)[:6] == ["good", "fair", "noise", "equal", "tuned", "stack"]
    assert found["tuned"].log_loss < found["equal"].log_loss < found["noise"].log_loss
    assert found["tuned"].log_loss < found["good"].log_loss


def test_weights_fall_back_to_equal_where_members_cannot_be_told_apart(make: Any, tmp_path: Path) -> None:
    """Equally good members: what the search finds is noise, and most of it is shrunk away."""
    distance = []
    for seed in range(3):
        table = make.table(tmp_path, n=200, cases=20, seed=seed)
        oof = stacked(table, *(make.logits(table, 0.7, 10 * seed + i) for i in range(5)))
        fit = blend_oof(oof, BlendSettings(trials=100)).full
        distance.append(np.abs(fit.weights["tuned"] - 0.2).sum())
        losses = np.array(fit.strength_losses)
        assert fit.strength == (0.0, 0.25, 0.5, 0.75, 1.0)[int(losses.argmin())]
    assert np.median(distance) < 0.15


@pytest.mark.parametrize("kind", ["tuned", "equal", "stack"])
def test_scores_of_logits_that_know_nothing_are_chance(make: Any, tmp_path: Path, kind: Any) -> None:
    """Ten members of noise: fitted and scored on the same cases they look good, cross-fitted they do not."""
    table = make.table(tmp_path, n=400, cases=40, seed=3)
    oof = stacked(table, *(make.logits(table, 0.0, i) for i in range(10)))
    result = blend_oof(oof, BlendSettings(kind=kind, trials=40))
    honest = result.scores()[kind]
    assert abs(honest.balanced_accuracy - 0.5) < 0.06 and abs(honest.roc_auc - 0.5) < 0.07
    seen = result.in_sample["stack"]
    assert scores(oof.labels, seen.confidence, seen.predicted).roc_auc > honest.roc_auc + 0.05


def test_cross_fitted_predictions_never_saw_their_case(make: Any, tmp_path: Path) -> None:
    """Changing the labels of one part changes no prediction of that part."""
    from dataclasses import replace

    table = make.table(tmp_path)
    members = [make.logits(table, 1.0, i) for i in range(3)]
    before = blend_oof(stacked(table, *members), FEW)
    held = before.part == 0
    # Swapping labels within a case keeps every count by which cases are spread over parts.
    labels = table.labels.copy()
    for case in set(before.oof.cases[held]):
        rows = np.flatnonzero(before.oof.cases == case)
        labels[rows] = np.roll(labels[rows], 1)
    assert not np.array_equal(labels, table.labels)
    patches = (replace(p, label=int(label)) for p, label in zip(table, labels, strict=True))
    after = blend_oof(stacked(table.with_patches(patches), *members), FEW)
    assert np.array_equal(after.part, before.part)
    for name, found in before.point_predictions.items():
        assert np.array_equal(found.confidence[held], after.point_predictions[name].confidence[held]), name
        assert np.array_equal(found.predicted[held], after.point_predictions[name].predicted[held]), name
    full = (before.cross_fitted["tuned"], after.cross_fitted["tuned"])
    assert not np.array_equal(full[0].confidence[~held], full[1].confidence[~held])


def test_one_member_is_itself(kept_run: Path) -> None:
    result = blend_runs([f"{kept_run}:good"], FEW)
    full = result.points["full"]
    assert full.members == ("good",) and full.weights == (1.0,)
    assert np.array_equal(result.cross_fitted["tuned"].logit, result.oof.views("none")[:, 0])
    assert set(result.points) == {f"{name}{end}" for name in ("full", "fast", "only:good") for end in ("", "/1")}


def test_identical_members_blend_to_themselves(make: Any, table: PatchTable) -> None:
    z = make.logits(table, 1.0, 1)
    result = blend_oof(stacked(table, z, z, z), FEW)
    alone = blend_oof(stacked(table, z), FEW)
    for kind in ("equal", "tuned", "stack"):
        np.testing.assert_allclose(result.in_sample[kind].confidence, alone.in_sample["m0"].confidence, rtol=1e-6)


def test_the_order_of_members_is_free(kept_run: Path, few: BlendResult) -> None:
    one, two = few, blend_runs([f"{kept_run}:{name}" for name in ("noise", "good", "fair")], FEW)
    assert one.weights == pytest.approx(two.weights, rel=1e-6)
    np.testing.assert_allclose(one.cross_fitted["tuned"].confidence, two.cross_fitted["tuned"].confidence, rtol=1e-6)


def test_operating_points(kept_run: Path) -> None:
    result = blend_runs([kept_run], BlendSettings(trials=60, views="d4"))
    sets = ["full", "fast", "only:good", "only:fair", "only:noise", "without:good", "without:fair", "without:noise"]
    assert set(result.points) == {name + end for name in [*sets, "top:2"] for end in ("", "/1")}
    points = result.points
    assert points["full"].views == "d4" and points["full/1"].views == points["fast"].views == "none"
    assert points["full"].weights == points["full/1"].weights
    assert (points["full"].temperature, points["full"].threshold) != (
        points["full/1"].temperature,
        points["full/1"].threshold,
    )
    assert points["fast"].members == ("good",) and points["top:2"].members == ("good", "fair")
    assert points["without:noise"].members == ("good", "fair")
    kept = [result.weights["good"], result.weights["fair"]]
    np.testing.assert_allclose(points["without:noise"].weights, np.array(kept) / sum(kept))
    assert [name for name, point in points.items() if point.fold_models] == ["fast", "fast/1"]
    assert points["fast"].fold_models == 1
    for name, point in points.items():
        assert point.name == name and sum(point.weights) == pytest.approx(1)


def test_fast_takes_as_many_of_the_best_as_the_recipe_says(kept_run: Path) -> None:
    two = blend_runs([kept_run], BlendSettings(trials=60, views="d4", fast=2)).points["fast"]
    assert two.members == ("good", "fair") and two.fold_models == 1 and two.views == "none"
    with pytest.raises(UsageError, match="blend fast 0"):
        BlendSettings(fast=0)


def test_each_point_is_calibrated_for_its_own_set(kept_run: Path) -> None:
    oof = align([kept_run])
    settings = BlendSettings(trials=60, views="rot4")
    result = blend_oof(oof, settings)
    for point in result.points.values():
        found = predict(point, blend_rows(oof, settings))
        assert found.confidence.mean() == pytest.approx(oof.prevalence, abs=0.01), point.name


def test_across_is_kept_apart_from_pooled(kept_run: Path, few: BlendResult) -> None:
    pooled = few.points["full"]
    across = blend_runs([kept_run], BlendSettings(trials=60, threshold="across")).points["full"]
    assert pooled.weights == across.weights and pooled.threshold != across.threshold


def test_a_stack_is_written_in_the_one_formula(kept_run: Path) -> None:
    result = blend_runs([kept_run], BlendSettings(kind="stack", trials=20))
    point = result.points["full"]
    assert np.abs(point.weights).sum() == pytest.approx(1)
    columns = [result.oof.names.index(name) for name in point.members]
    z = combine(point, result.oof.views("none")[:, columns])
    assert np.array_equal(z, result.in_sample["stack"].logit)
    assert result.scores()["stack"].roc_auc > result.scores()["noise"].roc_auc


def test_every_set_of_views_may_be_asked_for() -> None:
    assert get_args(Views) == tuple(VIEW_SETS) == tuple(VIEWS)


def test_a_table_of_scores(few: BlendResult) -> None:
    result = few
    rows = result.table()
    everything = result.table(by_domain=False)
    names = ["good", "fair", "noise", "equal", "tuned", "stack"]
    assert [row["name"] for row in everything] == [*names, *(f"views {views}" for views in VIEW_SETS)]
    assert rows[: len(everything)] == everything
    domains = rows[len(everything) :]
    assert [row["name"] for row in domains] == names * 2
    assert [row["group"] for row in domains[::6]] == ["breast, CS2", "breast, XR"]
    for row in rows:
        low, high = row["balanced_accuracy_interval"]
        assert low <= row["balanced_accuracy"] <= high and row["roc_auc_in_sample"] is not None
    assert sum(row["n"] for row in domains[::6]) == rows[0]["n"] == 300
    by_scanner = result.scores(by="scanner")
    assert list(by_scanner) == ["CS2", "XR"] and by_scanner["XR"].n == domains[6]["n"]
    with pytest.raises(UsageError, match="did you mean tuned"):
        result.scores(by="scanner", name="tuend")


def test_what_views_are_worth_is_read_from_stored_logits(kept_run: Path, few: BlendResult) -> None:
    oof = few.oof
    assert np.array_equal(few.cross_fitted["views none"].logit, few.cross_fitted["equal"].logit)
    np.testing.assert_allclose(few.cross_fitted["views d4_stain"].logit, oof.logits[:, :, :9].mean(axis=(1, 2)))
    assert "views macenko" in few.cross_fitted and "views d4_macenko" in few.cross_fitted
    earlier = replace(oof, logits=np.where(np.arange(10) >= 8, np.nan, oof.logits))
    assert [name for name in blend_oof(earlier, FEW).cross_fitted if name.startswith("views")] == [
        "views none",
        "views rot4",
        "views d4",
    ]
    with pytest.raises(DataError, match="views stain are not stored for all of good, fair, noise"):
        blend_oof(earlier, replace(FEW, views="stain"))


def test_the_blend_folder(kept_run: Path, few: BlendResult, tmp_path: Path) -> None:
    result = few
    path = result.write(tmp_path / "blends" / "x")
    blend = read_blend(path.parent)
    assert blend.points == result.points and blend.prevalence == result.oof.prevalence
    for member in blend.members:
        for fold in member.folds.values():
            assert sha256_file(fold["path"]) == fold["sha256"]
        assert Path(member.run).resolve() == kept_run.resolve() and member.network["backbone"]["name"] == member.member
    text = path.read_text(encoding="utf-8")
    assert str(tmp_path) not in text, "paths are relative, so that the project can be moved"
    content = json.loads(text)
    assert content["points"]["full"]["cross_fitted"]["roc_auc"] == result.scores()["tuned"].roc_auc
    assert content["provenance"]["runs"]["one"]["git"] == "abc"
    assert content["data_hash"] == result.oof.table.data_hash
    kept = read_scored(path.parent / OOF_BLEND_FILE)
    assert np.array_equal(kept.confidence, result.cross_fitted["tuned"].confidence)
    assert np.array_equal(kept.table.labels, result.oof.labels)


def test_few_fold_models_ship_and_all_of_them_are_scored(kept_run: Path, few: BlendResult, tmp_path: Path) -> None:
    fewer = blend_runs([kept_run], replace(FEW, fold_models={"good": 1, "fair": 7}))
    assert fewer.table() == few.table()
    members = {member.name: member for member in read_blend(fewer.write(tmp_path / "b")).members}
    assert {name: list(member.folds) for name, member in members.items()} == {
        "good": ["0"],
        "fair": ["0", "1"],
        "noise": ["0", "1"],
    }
    assert Path(members["good"].folds["0"]["path"]).resolve() == kept_run / "good/fold_0/model.safetensors"
    with pytest.raises(UsageError, match="unknown member in blend fold_models: goood\n  fix: did you mean good"):
        blend_runs([kept_run], replace(FEW, fold_models={"goood": 1}))
    with pytest.raises(UsageError, match="fold_models good: 0: at least one"):
        replace(FEW, fold_models={"good": 0})


def test_fold_models_come_from_the_recipe_of_the_run(make: Any, tmp_path: Path) -> None:
    from midog import api
    from midog.yaml import read_yaml, write_yaml

    table = make.table(tmp_path)
    run = make.run(tmp_path / "run", table, {"a": make.logits(table, 1.0, 1), "b": make.logits(table, 0.5, 2)})
    recipe = read_yaml(run / "recipe.yaml")
    write_yaml(run / "recipe.yaml", {**recipe, "blend": {"trials": 20, "fold_models": {"a": 1, "b": 1}}})
    assert api.blend_runs(run).settings.fold_models == {"a": 1, "b": 1}
    alone = api.blend_runs(f"{run}:b")
    assert alone.settings.fold_models == {"b": 1} and alone.settings.trials == 20


def test_the_same_seed_gives_the_same_blend(kept_run: Path, few: BlendResult, tmp_path: Path) -> None:
    run, one = kept_run, few.write(tmp_path / "blends" / "one").read_bytes()
    folder = tmp_path / "blends" / "two"
    blend_runs([run], FEW, folder)
    lines = (folder / JOURNAL_FILE).read_bytes().splitlines(keepends=True)
    for kept in (1, 200):
        (folder / JOURNAL_FILE).write_bytes(b"".join(lines[:kept]))
        assert blend_runs([run], FEW, folder).write(folder).read_bytes() == one
        assert (folder / JOURNAL_FILE).read_bytes() == b"".join(lines)
    other = blend_runs([run], BlendSettings(trials=60, seed=1)).write(tmp_path / "blends" / "three").read_bytes()
    assert other != one


def test_a_killed_blend_ends_in_the_same_bytes(kept_run: Path, tmp_path: Path) -> None:
    run, settings = kept_run, BlendSettings(trials=1000)
    folder = tmp_path / "blends" / "killed"
    code = (
        "import sys; from ensemble.crossfit import *\n"
        "blend_runs([sys.argv[1]], BlendSettings(trials=1000), sys.argv[2]).write(sys.argv[2])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(run), str(folder)])
    journal = folder / JOURNAL_FILE
    deadline = time.monotonic() + 60
    while not (journal.is_file() and journal.stat().st_size > 10_000) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "blend.json").exists()
    assert journal.read_bytes().count(b"\n") > 50
    resumed = blend_runs([run], settings, folder).write(folder).read_bytes()
    straight = blend_runs([run], settings).write(tmp_path / "blends" / "straight").read_bytes()
    assert resumed == straight


def test_two_processes_do_not_share_a_folder(run: Path, tmp_path: Path) -> None:
    from midog.files import lock

    with lock(tmp_path / "b" / ".lock", "x"), pytest.raises(UsageError, match="another process blends into"):
        blend_runs([run], FEW, tmp_path / "b")


def test_settings_that_are_wrong() -> None:
    with pytest.raises(UsageError, match=r"unknown blend kind: tuend\n  fix: did you mean tuned"):
        BlendSettings(kind="tuend")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown blend views: d8"):
        BlendSettings(views="d8")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least one trial"):
        BlendSettings(trials=0)


def test_too_few_cases(make: Any, tmp_path: Path) -> None:
    table = make.table(tmp_path, n=40, cases=2)
    with pytest.raises(DataError, match="too few cases to cross-fit"):
        blend_oof(stacked(table, make.logits(table, 1.0, 0)), FEW)
