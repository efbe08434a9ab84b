"""Stability over views: closed forms, defined values, no silent NaN."""

from __future__ import annotations

import numpy as np
import pytest

from midog.errors import DataError
from midog.robustness.stability import align_views, coefficient_of_variation, view_stability


def test_two_views_have_a_closed_form() -> None:
    pairs = np.array([[0.2, 0.6], [0.9, 0.1], [0.5, 0.5]])
    expected = np.abs(pairs[:, 0] - pairs[:, 1]) / pairs.sum(axis=1)
    np.testing.assert_allclose(coefficient_of_variation(pairs), expected, atol=1e-15)
    np.testing.assert_allclose(coefficient_of_variation(pairs[:, :, None]), expected, atol=1e-15)


def test_features_of_one_dimension_are_numbers_and_a_rotation_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 4, 5)) + 3
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    np.testing.assert_allclose(coefficient_of_variation(x @ rotation * 2), coefficient_of_variation(x), rtol=1e-12)


def test_equal_views_do_not_vary_also_at_0() -> None:
    assert (coefficient_of_variation(np.full((3, 4), 0.1)) == 0).all()
    assert (coefficient_of_variation(np.zeros((3, 4))) == 0).all()


def test_stability_by_hand() -> None:
    logits = np.array([[0.0, 2.0], [-3.0, -3.0], [1.0, -1.0], [4.0, 5.0]])
    found = view_stability(logits, list("aabb"))
    p = 1 / (1 + np.exp(-logits))
    assert found.variation == pytest.approx((np.abs(p[:, 0] - p[:, 1]) / p.sum(axis=1)).mean(), abs=1e-12)
    assert found.logit_range == pytest.approx((2 + 0 + 2 + 1) / 4)
    assert found.flip_rate == 0.25 and (found.n, found.views) == (4, 2)
    assert found.intervals["flip_rate"] is not None and found.intervals["flip_rate"].low == 0
    assert view_stability(logits, list("aabb"), threshold=0.6).flip_rate == 0.5


def test_a_single_case_has_no_interval() -> None:
    assert view_stability(np.zeros((3, 2)), ["a"] * 3).intervals["variation"] is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((3, 1)), "at least two views"),
        (np.zeros(3), "at least two views"),
        ([[0.1, np.nan]], "1 patches have views that are not finite"),
        ([[1.0, -1.0]], "around a mean of 0"),
    ],
)
def test_views_without_a_variation(values: list, words: str) -> None:
    with pytest.raises(DataError, match=words):
        coefficient_of_variation(values)


def test_rows_of_scanner_pairs_are_laid_side_by_side() -> None:
    sample, view = ["t2", "t1", "t1", "t2"], ["A", "B", "A", "B"]
    values = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]])
    found, samples, views = align_views(values, sample, view)
    assert (samples, views) == (["t1", "t2"], ["A", "B"])
    assert found[:, :, 0].tolist() == [[3, 2], [1, 4]] and found.shape == (2, 2, 2)
    with pytest.raises(DataError, match=r"one row in every view\n  t1 in A: 2 rows\n  t1 in B: 0 rows"):
        align_views(values, sample, ["A", "A", "A", "B"])
