"""What a threshold costs in domains never seen: closed forms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble.calibrate import fit_calibration, fit_threshold
from ensemble.crossfit import blend_runs
from ensemble.fit import BlendSettings
from ensemble.result import BlendResult
from ensemble.thresholds import MEAN, WORST, Thresholds, best_balanced_accuracy, threshold_table, unseen_domains
from midog.files import read_json


def steps(shift: float, n: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Normal patches at 0 … n - 1, atypical ones at n … 2n - 1, all moved by `shift`: no error at n - ½ + shift."""
    return np.arange(2 * n) + shift, np.repeat([0, 1], n)


def cost_of(domains: dict[str, tuple[np.ndarray, np.ndarray]]) -> Thresholds:
    """Each patch a case of its own, even ones in part 0."""
    z = np.concatenate([z for z, _ in domains.values()])
    y = np.concatenate([y for _, y in domains.values()])
    words = np.concatenate([[name] * len(y) for name, (_, y) in domains.items()])
    found = unseen_domains(z, y, np.arange(len(y)).astype(str), words, np.arange(len(y)) % 2)
    assert found is not None
    return found


def test_a_constant_shift_between_two_domains_costs_what_it_must() -> None:
    """Threshold 9.5 from A, three of B's ten normal patches lie above it; 12.5 from B, three atypical of A below."""
    found = cost_of({"A": steps(0), "B": steps(3)})
    for row in found.domains:
        assert (row.best, row.n, row.atypical) == (1.0, 20, 10)
        for rule in ("pooled", "across"):
            assert row.left_out[rule].balanced_accuracy == pytest.approx(0.85)
            assert row.left_out[rule].regret == pytest.approx(0.15)
    for row in (found.mean, found.worst):
        assert row.left_out["pooled"].regret == pytest.approx(0.15)
    # Over all: sensitivity and specificity 17 of 20; one threshold at 11 would call 18.5 of 20 right on average.
    assert found.all.left_out["pooled"].balanced_accuracy == pytest.approx(0.85)
    assert found.all.best == pytest.approx(0.925) and found.all.left_out["pooled"].regret == pytest.approx(0.075)


def test_domains_that_agree_cost_nothing_and_far_ones_all_there_is() -> None:
    alike = cost_of({"A": steps(0), "B": steps(0)})
    assert alike.worst.left_out["pooled"].regret == alike.worst.left_out["across"].regret == 0
    far = cost_of({"A": steps(0), "B": steps(1000)})
    assert [row.left_out["pooled"].balanced_accuracy for row in far.domains] == [0.5, 0.5]
    assert far.mean.left_out["across"].regret == 0.5
    # Seen by case, either all of A or all of B can be right, the other half by chance.
    assert far.all.by_case["pooled"].balanced_accuracy <= far.all.best == 0.75


def test_mean_and_worst_are_of_the_domains_alone() -> None:
    """Without C, A and B give 9.5: C loses 3 of 10. Without A or B the other rows are as the code's own fit says."""
    found = cost_of({"A": steps(0, 40), "B": steps(0, 40), "C": steps(12, 40)})
    regrets = {row.domain: row.left_out["pooled"].regret for row in found.domains}
    assert regrets["C"] == pytest.approx(0.15)
    assert found.mean.domain == MEAN and found.worst.domain == WORST
    assert found.mean.left_out["pooled"].regret == pytest.approx(np.mean(list(regrets.values())))
    assert found.worst.left_out["pooled"].regret == pytest.approx(0.15)
    assert found.worst.left_out["pooled"].balanced_accuracy == pytest.approx(0.85)


def test_each_rule_is_the_one_that_ships() -> None:
    """Against the fits by hand, on logits of a large and two small domains."""
    rng = np.random.default_rng(0)
    sizes, shifts = {"large": 600, "small": 80, "other": 60}, {"large": 0.0, "small": 1.5, "other": -1.0}
    domains = {}
    for name, n in sizes.items():
        y = (rng.random(n) < 0.3).astype(int)
        domains[name] = (2.0 * y + rng.normal(size=n) + shifts[name], y)
    found = cost_of(domains)
    assert [row.domain for row in found.domains] == ["large", "small", "other"]
    for row in found.domains:
        rest = {name: pair for name, pair in domains.items() if name != row.domain}
        z, y = (np.concatenate([pair[at] for pair in rest.values()]) for at in (0, 1))
        words = np.concatenate([[name] * len(pair[1]) for name, pair in rest.items()])
        calibration = fit_calibration(z, y)
        held, truth = domains[row.domain]
        for rule, domain in (("pooled", None), ("across", words)):
            threshold = fit_threshold(calibration.scale(z), y, domain)
            called = 1 / (1 + np.exp(-calibration.scale(held))) >= threshold
            expected = (called[truth == 1].mean() + (~called[truth == 0]).mean()) / 2
            assert row.left_out[rule].balanced_accuracy == pytest.approx(expected)
            assert row.left_out[rule].regret == pytest.approx(row.best - expected) and row.best >= expected
    large = found.domains[0].left_out
    assert large["pooled"].balanced_accuracy != large["across"].balanced_accuracy


def test_the_best_threshold_is_the_top_of_the_raw_curve() -> None:
    rng = np.random.default_rng(1)
    z, y = rng.normal(size=60).round(1), (rng.random(60) < 0.4).astype(int)
    everywhere = [((z >= t)[y == 1].mean() + (z < t)[y == 0].mean()) / 2 for t in [*z, 99.0]]
    assert best_balanced_accuracy(z, y) == pytest.approx(max(everywhere))
    assert best_balanced_accuracy([1.0, 1.0, 0.0], [1, 0, 0]) == 0.75  # equal logits cannot be told apart
    assert best_balanced_accuracy([0.0, 1.0], [1, 0]) == 0.5


def test_few_patches_of_a_class_are_listed_without_numbers() -> None:
    z, y = steps(0)
    found = cost_of({"A": steps(0), "B": steps(0), "few": (z[1:], y[1:])})
    few = found.domains[-1]
    assert (few.domain, few.n, few.best, few.left_out, few.by_case) == ("few", 19, None, {}, {})
    assert found.mean.n == 40 and found.all.n == 59
    assert threshold_table(found)[2]["pooled regret"] is None
    none = cost_of({"x": (z[5:15], y[5:15]), "y": (z[5:15], y[5:15])})
    assert none.mean.best is None and none.all.best == 1.0


def test_a_domain_that_holds_all_of_a_class_has_no_numbers() -> None:
    z, y = steps(0)
    found = cost_of({"A": (z, y), "normal": (np.arange(30.0), np.zeros(30, dtype=int))})
    assert [(row.domain, row.best) for row in found.domains] == [("normal", None), ("A", None)]
    assert found.all.n == 30 and found.all.best is None  # A's patches have no threshold that did not see A


def test_one_domain_says_so(make: Any, tmp_path: Path) -> None:
    table = make.table(tmp_path)
    table = table.with_patches(replace(patch, domain="breast") for patch in table)
    run = make.run(tmp_path / "run", table, {"a": make.logits(table, 1.0, 1)})
    result = blend_runs([run], BlendSettings(kind="equal", trials=5))
    assert result.thresholds is None
    assert read_json(result.write(tmp_path / "blend"))["thresholds"] == {
        "how": "All patches are of one domain: what the threshold costs in another cannot be told from them."
    }


def test_a_blend_keeps_what_it_found(kept_run: Path, tmp_path: Path) -> None:
    result: BlendResult = blend_runs([kept_run], BlendSettings(kind="equal", trials=5))
    kept = read_json(result.write(tmp_path / "blend"))["thresholds"]
    rows = threshold_table(result.thresholds)
    assert (
        [row["domain"] for row in kept["domains"]] == ["breast, XR", "breast, CS2"] == [r["domain"] for r in rows[:2]]
    )
    assert kept["worst"]["left_out"]["across"]["regret"] == rows[-1]["across regret"]
    # By case with the rule of the blend: the very predictions that are scored.
    assert kept["all"]["by_case"]["pooled"]["balanced_accuracy"] == result.scores()["equal"].balanced_accuracy
