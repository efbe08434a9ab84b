from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midog.metrics import scores
from midog.report.curves import balanced_accuracy_curve, flat_top, roc_points, wilson

SCORED = st.lists(st.tuples(st.booleans(), st.integers(0, 10)), min_size=2, max_size=60).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


@given(SCORED)
def test_area_under_roc_points_is_the_auroc(rows):
    label = np.array([int(y) for y, _ in rows])
    confidence = np.array([s / 10 for _, s in rows])
    false_positive, sensitivity = roc_points(label, confidence)
    assert np.trapezoid(sensitivity, false_positive) == pytest.approx(
        scores(label, confidence, confidence > 0.5).roc_auc
    )
    assert (false_positive[0], sensitivity[0], false_positive[-1], sensitivity[-1]) == (0, 0, 1, 1)


@given(SCORED)
def test_threshold_curve_is_the_balanced_accuracy_at_each_threshold(rows):
    label = np.array([int(y) for y, _ in rows])
    confidence = np.array([s / 10 for _, s in rows])
    for threshold, accuracy in zip(*balanced_accuracy_curve(label, confidence), strict=True):
        assert accuracy == pytest.approx(scores(label, confidence, confidence >= threshold).balanced_accuracy)


def test_flat_top_is_the_stretch_around_the_maximum_only():
    threshold = np.arange(7) / 10
    accuracy = np.array([0.80, 0.5, 0.795, 0.80, 0.805, 0.79, 0.80])
    assert flat_top(threshold, accuracy) == (0.2, 0.4)


def test_wilson_matches_statsmodels_published_value():
    assert wilson(2, 10) == pytest.approx((0.05668, 0.50984), abs=1e-4)
    assert wilson(0, 5)[0] == 0.0
    assert wilson(5, 5)[1] == 1.0
