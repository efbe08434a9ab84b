"""Nested shares of cases, and what a probe makes of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from midog.audit.low_data import SHARES, nested_cases, section, shares_curve
from midog.errors import DataError


def test_smaller_sets_of_cases_are_part_of_larger_ones() -> None:
    case = np.repeat(np.arange(200), 3)
    sets = [set(case[rows].tolist()) for rows in nested_cases(case)]
    assert [len(cases) for cases in sets] == [2, 10, 20, 50, 200]
    assert all(a < b for a, b in pairwise(sets))
    again = nested_cases(case)
    assert all(np.array_equal(a, b) for a, b in zip(again, nested_cases(case), strict=True))
    assert not np.array_equal(nested_cases(case, seed=1)[1], again[1])


def test_the_curve_rises_with_the_cases_and_is_chance_where_a_class_is_missing() -> None:
    rng = np.random.default_rng(0)
    case = np.repeat(np.arange(60), 4)
    label = (case % 2).astype(int)  # a case is of one class: 1 % of the cases is one case, and so one class
    x = rng.normal(size=(len(case), 20)) + 1.2 * label[:, None] * (np.arange(20) < 5)
    rows = shares_curve(x, label, case)
    assert [row["share"] for row in rows] == list(SHARES)
    assert rows[0]["one_class"] == rows[0]["folds"] == 5 and rows[0]["cases"] == 1
    assert rows[0]["balanced_accuracy"]["value"] == 0.5
    assert rows[-1]["balanced_accuracy"]["value"] > 0.85 and rows[-1]["cases"] == 48
    assert "5 of 5" in section({"backbone": "drawn", "rows": rows}).html


def test_features_that_are_not_finite() -> None:
    with pytest.raises(DataError, match="not finite"):
        shares_curve(np.full((8, 2), np.nan), np.arange(8) % 2, np.arange(8) // 2)
