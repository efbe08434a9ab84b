"""Average performance drop: its closed forms, the published arrays, and a protocol that never leaks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from drawn_features import Drawn, draw

from midog.errors import DataError, UsageError
from midog.robustness.biased_splits import draw_splits, make_design
from midog.robustness.performance_drop import (
    Protocol,
    average_performance_drop,
    cramers_v,
    performance_drop,
)

QUICK = Protocol(splits=3, repeats=2, strengths=(0.01, 1.0))


def pure(cases: int = 25, of_label: float = 1.5, of_scanner: float = 4.0, seed: int = 0) -> Drawn:
    """Cases of one label each, as in PathoROB's own sets."""
    drawn = draw(of_label, of_scanner, cases=2 * cases, per_case=4, seed=seed)
    label = np.where(drawn.case // 2 % 2, "atypical", "normal")
    features = drawn.features.copy()
    features[:, 0] += of_label * (np.where(label == "atypical", 1, -1) - (2 * (np.arange(len(label)) % 2) - 1))
    return Drawn(features, label, drawn.scanner, drawn.case)


def test_constant_accuracy_is_no_drop_and_half_of_it_minus_a_half() -> None:
    assert average_performance_drop(np.full((5, 3), 0.8)) == 0
    halved = np.full((5, 3), 0.4)
    halved[0] = 0.8
    assert average_performance_drop(halved) == -0.5


def test_the_ratio_is_taken_inside_each_repeat() -> None:
    assert average_performance_drop([[0.5, 1.0], [0.5, 0.5], [0.25, 1.0]]) == pytest.approx((0.75 + 0.75) / 2 - 1)


def test_published_accuracies_give_the_published_drop() -> None:
    stored = json.loads((Path(__file__).parent / "pathorob_uni2h_camelyon.json").read_text())
    found = average_performance_drop(np.array(stored["of_2400"]) / 2400)
    assert found == pytest.approx(stored["apd_id"], abs=1e-12) == pytest.approx(-0.046293, abs=1e-6)


def test_agrees_with_croma() -> None:
    croma = pytest.importorskip("croma")
    accuracies = np.random.default_rng(0).uniform(0.4, 1, size=(6, 9))
    assert average_performance_drop(accuracies) == pytest.approx(croma.apd(accuracies), abs=1e-12)


@pytest.mark.parametrize("wrong", [[[0.5]], [0.5, 0.5], [[0.0], [0.5]], [[0.5], [np.nan]], np.zeros((3, 0))])
def test_accuracies_without_a_drop(wrong: list) -> None:
    with pytest.raises(DataError, match="accuracies"):
        average_performance_drop(wrong)


@pytest.mark.parametrize(("m", "s"), [(7, 0), (7, 1), (7, 5), (7, 7), (50, 13)])
def test_cramers_v_of_a_shifted_table(m: int, s: int) -> None:
    assert cramers_v([[m - s, m + s], [m + s, m - s]]) == pytest.approx(s / m, abs=1e-12)


def test_cramers_v_of_tables_without_association() -> None:
    assert cramers_v([[3, 6, 9], [1, 2, 3]]) == pytest.approx(0, abs=1e-12)
    assert cramers_v(np.diag([4, 5, 6])) == pytest.approx(1)
    for wrong in ([[1, 2]], [[0, 0], [3, 4]], [[1, 0], [2, 0]], [[-1, 2], [3, 4]], [1, 2], [[np.nan, 1], [1, 1]]):
        with pytest.raises(DataError):
            cramers_v(wrong)


@pytest.mark.parametrize("drawn", [pure(), draw(1, 1, cases=25, per_case=8)], ids=["cases", "patches"])
def test_blocks_share_no_case_and_hold_the_cells_they_should(drawn: Drawn) -> None:
    design = make_design(*drawn.all[1:], splits=4)
    for seed in range(3):
        splits = draw_splits(design, np.random.default_rng(seed))
        blocks = [np.concatenate(splits.train), np.concatenate(splits.validation), splits.in_domain]
        held = [set(drawn.case[rows]) for rows in blocks]
        assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]
        unit = drawn.case if design.by_case else np.arange(len(drawn.case))
        for part in (splits.train, splits.validation):
            for rows, s in zip(part, splits.shifts, strict=True):
                sizes = [len(np.unique(unit[rows[design.cell[rows] == cell]])) for cell in range(4)]
                assert sizes == [splits.half + s, splits.half - s, splits.half - s, splits.half + s]
        assert splits.shifts[0] == 0 and splits.shifts[-1] == splits.half


def test_the_unit_is_the_case_where_cases_suffice() -> None:
    assert make_design(*pure(25).all[1:]).by_case  # ten training cases of each cell: 5 : 5 to 0 : 10
    assert not make_design(*pure(12).all[1:]).by_case
    assert not make_design(*draw(1, 1, cases=40).all[1:]).by_case  # cases hold both labels


def test_scanners_are_chosen_by_their_smallest_cell_or_by_name() -> None:
    drawn = draw(1, 1, scanners=3, cases=20, per_case=8)
    kept = ~((drawn.scanner == "S0") & (drawn.label == "atypical") & (drawn.case % 2 == 0))
    words = [w[kept] for w in drawn.all[1:]]
    assert make_design(*words).domains == ("S1", "S2")
    assert make_design(*words, domains=("S2", "S0")).domains == ("S2", "S0")
    with pytest.raises(UsageError, match=r"unknown domain: S9\n"):
        make_design(*words, domains=("S9", "S0"))
    with pytest.raises(UsageError, match="name two"):
        make_design(*words, classes=("normal", "normal"))


def test_a_probe_that_can_take_the_scanner_loses_and_one_that_cannot_does_not() -> None:
    biased = performance_drop(*draw(1.0, 4.0, cases=30, per_case=8).all, protocol=QUICK)
    blind = performance_drop(*draw(1.0, 0.0, cases=30, per_case=8).all, protocol=QUICK)
    assert biased.cramers_v == pytest.approx((0, 0.5, 1), abs=0.02) and biased.unit == "patch"
    assert biased.in_domain.accuracies.shape == (3, 2)
    assert biased.in_domain.average_performance_drop < -0.1
    assert abs(blind.in_domain.average_performance_drop) < 0.06
    interval = biased.in_domain.interval
    assert interval is not None
    assert interval.low < biased.in_domain.average_performance_drop < interval.high < 0
    assert biased.out_of_domain is None  # there is no third scanner


def test_other_scanners_are_tested_where_there_are_some() -> None:
    drawn = draw(2.0, 2.0, cases=20, per_case=8, scanners=3)
    found = performance_drop(*drawn.all, domains=("S0", "S1"), protocol=QUICK)
    assert found.out_of_domain is not None and found.out_of_domain.accuracies[0].min() > 0.8
    assert performance_drop(*drawn.all, domains=("S0", "S1"), protocol=QUICK).to_dict() == found.to_dict()
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_case_seen_by_several_scanners_is_not_tested_where_it_was_trained() -> None:
    drawn = draw(1, 1, cases=30, per_case=8, scanners=3)
    tissue = drawn.case // 3  # the same tissue under three scanners
    design = make_design(drawn.label, drawn.scanner, tissue, domains=("S0", "S1"))
    splits = draw_splits(design, np.random.default_rng(0))
    trained = set(tissue[np.concatenate((*splits.train, *splits.validation))])
    assert len(splits.out_of_domain) and not trained & set(tissue[splits.out_of_domain])


def test_too_few_units_say_how_many_are_needed() -> None:
    drawn = draw(1, 1, cases=5, per_case=2)
    with pytest.raises(DataError, match=r"5 splits need 8 patches of each class .*\n.*fewer splits"):
        performance_drop(*drawn.all)
    missing = (drawn.scanner == "S1") & (drawn.label == "atypical")
    with pytest.raises(DataError, match="no two domains hold two classes each"):
        performance_drop(*(values[~missing] for values in drawn.all))
    with pytest.raises(UsageError, match="cannot be carried out"):
        Protocol(splits=1)
