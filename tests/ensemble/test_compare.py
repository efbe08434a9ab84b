from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble.compare import ONE_TRAINING_MEANS, Comparison, compare, load_scored
from ensemble.crossfit import blend_runs
from ensemble.fit import BlendSettings
from ensemble.oof import align
from ensemble.predictions import write_scored
from midog.cli import run as command
from midog.data.patches import PatchTable
from midog.errors import DataError, UsageError
from midog.files import write_csv
from midog.metrics import replicates, scores


@pytest.fixture
def table(make: Any, tmp_path: Path) -> PatchTable:
    return make.table(tmp_path, n=800, cases=40)


@pytest.fixture
def two(make: Any, tmp_path: Path, table: PatchTable) -> tuple[Path, Path, Path]:
    """Two seeds of one recipe, and a crippled recipe; what a patch is like is common to all three."""
    rng = np.random.default_rng(0)
    common = 0.8 * rng.normal(size=(len(table), 1))
    draws = {"a": (1.0, 1), "b": (1.0, 2), "crippled": (0.55, 3)}
    a, b, crippled = (
        make.run(tmp_path / "runs" / name, table, {"net": make.logits(table, signal, seed, noise=0.5) + common})
        for name, (signal, seed) in draws.items()
    )
    return a, b, crippled


def verdicts(found: Comparison, group: str = "all") -> dict[str, str | None]:
    return {d.metric: d.verdict for d in found.differences if d.group == group}


def test_two_seeds_are_noise_and_a_crippled_recipe_is_not(two: tuple[Path, Path, Path]) -> None:
    a, b, crippled = two
    assert set(verdicts(compare(a, b)).values()) == {"noise"} and compare(a, b).verdict == "noise"
    found = compare(a, crippled)
    assert set(verdicts(found).values()) == {"A better"} and found.verdict == "A better"
    assert compare(crippled, a).verdict == "B better"
    assert found.differences[0].difference < 0 < found.differences[2].difference  # accuracy falls, log-loss rises


def test_a_result_equals_itself(two: tuple[Path, Path, Path]) -> None:
    for d in compare(two[0], f"{two[0]}:net").differences:
        assert d.difference == 0 and d.interval.low == d.interval.high == 0 and d.verdict == "noise"


def test_the_bootstrap_is_paired(two: tuple[Path, Path, Path]) -> None:
    """Paired draws give a narrower interval than two independent ones would."""
    a, b, _ = two
    found = next(d for d in compare(a, b).differences if d.metric == "roc_auc")
    first, second = load_scored(a), load_scored(b)
    y, case = first.table.labels, first.table.column("case")
    left, right = (
        replicates(y, s.confidence, s.predicted, case, ["roc_auc"], 4000, seed, s.folds)["roc_auc"]
        for seed, s in enumerate((first, second))
    )
    low, high = np.quantile(right - left, [0.05 / 6, 1 - 0.05 / 6])
    assert found.interval.high - found.interval.low < 0.9 * (high - low)


def test_the_luck_of_a_fold_model_is_part_of_the_spread(
    make: Any, two: tuple[Path, Path, Path], tmp_path: Path, table: PatchTable
) -> None:
    """The fold models of one run differ in worth, those of the other do not: cases alone would call that certain."""
    logits = make.logits(table, 1.0, 5, noise=0.5) + 0.8 * np.random.default_rng(0).normal(size=(len(table), 1))
    lucky = logits + (2.0 * table.labels[:, None] - 1) * np.where(table.folds == 0, 0.8, 0.0)[:, None]
    other = make.run(tmp_path / "runs" / "lucky", table, {"net": lucky})
    found = compare(two[0], other)
    assert found.drawn == "folds and cases" and found.verdict == "noise"
    truth = table.write(tmp_path / "patches.csv")
    tables = [write_scored(tmp_path / f"{i}.csv", load_scored(spec)) for i, spec in enumerate((two[0], other))]
    by_case = compare(*tables, truth=truth)
    assert by_case.drawn == "cases" and by_case.verdict == "B better"


def test_one_training_a_side_is_no_proof(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where scanners are the folds, one lucky fold model is all there is of its scanner: cases cannot tell luck."""
    table = make.table(tmp_path / "t", n=800, cases=40)
    scanners = sorted(set(table.column("scanner")))
    table = table.with_patches(replace(patch, fold=scanners.index(patch.scanner)) for patch in table)
    common = 0.8 * np.random.default_rng(0).normal(size=(len(table), 1))
    plain = make.logits(table, 1.0, 1, noise=0.5) + common
    lucky = plain + (2.0 * table.labels[:, None] - 1) * np.where(table.folds == 0, 0.8, 0.0)[:, None]
    a, b = (make.run(tmp_path / name, table, {"net": z}) for name, z in (("a", plain), ("b", lucky)))
    found = compare(a, b, by="scanner")
    assert verdicts(found, scanners[0])["roc_auc"] == "one training"
    assert verdicts(found, scanners[1])["roc_auc"] == "noise"
    assert found.drawn == "folds and cases"
    assert command(["compare", str(a), str(b), "--by", "scanner"]) == 0
    assert ONE_TRAINING_MEANS in capsys.readouterr().out


def test_by_group(two: tuple[Path, Path, Path]) -> None:
    found = compare(two[0], two[2], by="scanner")
    assert {d.group for d in found.differences} == {"all", "CS2", "XR"}
    sizes = {d.group: d.n for d in found.differences}
    assert sizes["CS2"] + sizes["XR"] == sizes["all"] == 800
    assert verdicts(found, "XR")["log_loss"] == "A better"
    assert {"group", "metric", "A", "B", "B - A", "interval", "verdict"} <= set(found.table()[0])
    with pytest.raises(UsageError, match="did you mean scanner"):
        compare(two[0], two[1], by="scaner")


def test_a_run_is_scored_by_the_mean_logit_of_its_members(run: Path) -> None:
    scored = load_scored(run)
    columns = align([run]).views("none")
    np.testing.assert_allclose(scored.logit, columns.mean(axis=1))
    assert np.array_equal(load_scored(f"{run}:good").logit, columns[:, 0])
    y = scored.table.labels
    assert scores(y, scored.confidence, scored.predicted).roc_auc > 0.8
    assert scored.confidence.mean() == pytest.approx(y.mean(), abs=0.02)


def test_a_blend_is_scored_by_its_cross_fitted_predictions(run: Path, tmp_path: Path) -> None:
    result = blend_runs([run], BlendSettings(trials=60))
    result.write(tmp_path / "blend")
    found = compare(f"{run}:noise", tmp_path / "blend")
    assert found.verdict == "B better"
    auc = next(d for d in found.differences if d.metric == "roc_auc")
    assert auc.b == result.scores()["tuned"].roc_auc


def test_prediction_tables_with_a_truth(run: Path, tmp_path: Path, table: PatchTable) -> None:
    truth = table.write(tmp_path / "patches.csv")
    rng = np.random.default_rng(0)

    def predictions(name: str, signal: float) -> Path:
        z = (2.0 * table.labels - 1) * signal + rng.normal(size=len(table))
        words = np.where(z >= 0, "atypical", "normal").tolist()
        rows = zip(table.ids, z.tolist(), (1 / (1 + np.exp(-z))).tolist(), words, strict=True)
        return write_csv(tmp_path / name, ("patch_id", "logit", "confidence", "class"), rows)

    a, b = predictions("a.csv", 1.5), predictions("b.csv", 0.5)
    assert compare(a, b, truth=truth).verdict == "A better"
    with pytest.raises(DataError, match="--truth"):
        compare(a, b)


def test_tables_that_cannot_be_scored(tmp_path: Path, table: PatchTable) -> None:
    truth = table.write(tmp_path / "patches.csv")
    rows = [[i, 0.0, 0.5, "normal"] for i in table.ids]
    rows[1][2], rows[2][3], rows[4] = "1.5", "odd", rows[3]
    bad = write_csv(tmp_path / "bad.csv", ("patch_id", "logit", "confidence", "class"), rows)
    with pytest.raises(DataError) as error:
        load_scored(bad, truth)
    for words in (
        "row 3: set/0001: logit '0.0', confidence '1.5'",
        "class 'odd'",
        "set/0003 again",
        "set/0004: no pred",
    ):
        assert words in str(error.value)
    with pytest.raises(DataError, match="no column confidence"):
        load_scored(write_csv(tmp_path / "c.csv", ("patch_id", "logit", "class"), []), truth)


def test_only_shared_patches_are_compared(
    make: Any, two: tuple[Path, Path, Path], tmp_path: Path, table: PatchTable
) -> None:
    part = table.subset(table.column("case") != "case00")
    logits = make.logits(table, 1.0, 1)[table.column("case") != "case00"]
    found = compare(two[0], make.run(tmp_path / "runs" / "part", part, {"net": logits}))
    assert found.left_out == (20, 0) and found.differences[0].n == 780
    foreign = table.with_patches(replace(p, patch_id=f"x/{p.patch_id}") for p in table)
    with pytest.raises(DataError, match="share no patch"):
        compare(two[0], make.run(tmp_path / "runs" / "x", foreign, {"net": make.logits(table, 1.0, 1)}))


def test_contradicting_truth_is_an_error(
    make: Any, two: tuple[Path, Path, Path], tmp_path: Path, table: PatchTable
) -> None:
    turned = table.with_patches(replace(p, label=1 - p.label) if p.patch_id == "set/0007" else p for p in table)
    other = make.run(tmp_path / "runs" / "t", turned, {"net": make.logits(table, 1.0, 1)})
    with pytest.raises(DataError, match=r"set/0007: label \d in A, \d in B"):
        compare(two[0], other)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run, blend or prediction table"):
        compare(tmp_path / "a", tmp_path / "b")
