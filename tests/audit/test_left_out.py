"""A probe without a domain: nothing is lost where the classes look alike everywhere, all where a domain turns them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from midog.audit import left_out
from midog.audit.left_out import ALL, left_out_rows, without_each
from midog.errors import DataError


def drawn_features(turned: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Three scanners of ten cases; on the last one the class shows in another direction, and its opposite in ours."""
    case = np.repeat(np.arange(30), 8)
    label, scanner = np.arange(240) % 2, np.array([f"S{c % 3}" for c in case])
    x = np.random.default_rng(0).normal(size=(240, 6))
    sign = np.where(turned & (scanner == "S2"), -1, 1)
    x[:, 0] += 3 * label * sign
    x[:, 1] += 6 * (scanner == "S2") * label * turned
    return x, label, case.astype(str), scanner


def rows_of(turned: bool) -> dict[str, dict[str, Any]]:
    x, label, case, scanner = drawn_features(turned)
    rows = left_out_rows(x, label, case, {"scanner": scanner, "tumour": np.full(240, "T0")})
    assert {row["by"] for row in rows} == {"scanner"}  # of one tumour nothing can be left out
    return {row["group"]: row for row in rows}


def test_nothing_is_lost_where_all_scanners_are_alike() -> None:
    rows = rows_of(turned=False)
    assert list(rows) == [ALL, "S0", "S1", "S2"] and rows[ALL]["left_out"]["n"] == 240
    assert all(abs(row["gap"]["balanced_accuracy"]["value"]) < 0.06 for row in rows.values())
    assert rows[ALL]["left_out"]["balanced_accuracy"]["value"] > 0.85


def test_a_scanner_that_shows_the_class_otherwise_is_lost_when_it_is_left_out() -> None:
    rows = rows_of(turned=True)
    gap = rows["S2"]["gap"]["roc_auc"]
    assert rows["S2"]["left_out"]["roc_auc"]["value"] < 0.2 and gap["low"] > 0.5
    row = rows["S2"]
    for metric in ("balanced_accuracy", "roc_auc"):
        difference = row["by_case"][metric]["value"] - row["left_out"][metric]["value"]
        assert row["gap"][metric]["value"] == pytest.approx(difference)
    found = {"backbone": "drawn", "rows": list(rows.values())}
    assert "below the same by case" in left_out.headline(found) and "S2" in left_out.section(found).html


def test_neither_the_domain_nor_a_case_that_reaches_into_it_is_trained_on() -> None:
    """Case b lies in both scanners; S0's answers may not change with its rows in S1, nor with S0's own labels."""
    rng = np.random.default_rng(1)
    x, label = rng.normal(size=(40, 3)), np.arange(40) % 2
    case = np.array(["a"] * 10 + ["b"] * 20 + ["c"] * 10)
    words = np.array(["S0"] * 20 + ["S1"] * 20)
    before = without_each(x, label, case, words)
    other = label.copy()
    other[:30] = 1 - other[:30]
    assert np.array_equal(without_each(x, other, case, words)[:20], before[:20])
    words[0] = ""  # a patch without a word
    assert np.isnan(without_each(x, label, case, words)[0])


def test_one_scanner_and_one_tumour() -> None:
    x, label, case, _ = drawn_features(False)
    with pytest.raises(DataError, match="one scanner and one tumour at most"):
        left_out_rows(x, label, case, {by: np.full(240, "one") for by in ("scanner", "tumour")})
