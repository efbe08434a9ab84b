from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midog.errors import DataError
from midog.metrics import (
    METRICS,
    _draw_nested,
    bootstrap_by_case,
    case_index,
    percentile_interval,
    replicates,
    scores,
    scores_by,
)

skm = pytest.importorskip("sklearn.metrics")


def draw(n: int, seed: int, levels: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of both classes, confidences with many ties, classes."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.r_[0, 1, (rng.random(n - 2) < 0.3).astype(int)])
    p = rng.integers(0, levels, n) / (levels - 1)
    return y, p, p >= 0.5


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 80), seed=st.integers(0, 10**6), levels=st.integers(2, 50))
def test_scores_equal_scikit_learn(n: int, seed: int, levels: int) -> None:
    y, p, called = draw(n, seed, levels)
    found = scores(y, p, called)
    assert found.balanced_accuracy == pytest.approx(skm.balanced_accuracy_score(y, called))
    assert found.sensitivity == pytest.approx(skm.recall_score(y, called))
    assert found.specificity == pytest.approx(skm.recall_score(y, called, pos_label=0))
    assert found.accuracy == pytest.approx(skm.accuracy_score(y, called))
    assert found.roc_auc == pytest.approx(skm.roc_auc_score(y, p), abs=1e-12)
    assert found.log_loss == pytest.approx(skm.log_loss(y, p))
    assert (found.n, found.n_atypical) == (n, y.sum())


def test_what_is_undefined_is_none() -> None:
    only_normal = scores([0, 0], [0.2, 0.9], [False, True])
    assert only_normal.sensitivity is None and only_normal.balanced_accuracy is None and only_normal.roc_auc is None
    assert only_normal.specificity == only_normal.accuracy == 0.5
    nothing = scores([], [], [])
    assert all(getattr(nothing, name) is None for name in METRICS) and nothing.n == 0


def test_groups_are_scored_apart() -> None:
    y, p, called = draw(60, 3)
    group = np.array(["b", "a", "c"], dtype=object)[np.arange(60) % 3]
    found = scores_by(y, p, called, group)
    assert list(found) == ["a", "b", "c"]
    rows = group == "b"
    assert found["b"] == scores(y[rows], p[rows], called[rows])


@pytest.mark.parametrize(
    ("label", "confidence", "predicted", "words"),
    [
        ([0, 2], [0.1, 0.2], [0, 0], "1 labels are neither 0"),
        ([0, 1], [0.1, 1.2], [0, 1], "no probabilities, e.g. 1.2"),
        ([0, 1], [0.1, math.nan], [0, 1], "no probabilities, e.g. nan"),
        ([0, 1], [0.1], [0, 1], "one of each per patch"),
    ],
)
def test_input_that_cannot_be_scored(label: list, confidence: list, predicted: list, words: str) -> None:
    with pytest.raises(DataError, match=words):
        scores(label, confidence, predicted)


def test_bootstrap_equals_a_plain_loop_over_the_same_draws() -> None:
    y, p, called = draw(120, 5)
    case = np.array([f"c{i % 11}" for i in range(120)], dtype=object)
    found = replicates(y, p, called, case, n=40, seed=9)
    index, cases = case_index(case)
    drawn = np.random.default_rng(9).integers(cases, size=(40, cases))
    for r in range(40):
        rows = np.concatenate([np.flatnonzero(index == c) for c in drawn[r]])
        expected = scores(y[rows], p[rows], called[rows])
        for name in METRICS:
            assert found[name][r] == pytest.approx(getattr(expected, name), abs=1e-12), (name, r)


def test_folds_are_drawn_before_cases() -> None:
    """Each replicate draws as many folds as there are, whole sizes at a time, and only then cases."""
    fold = np.array([0, 0, 0, 1, 1, 2])  # of six cases
    counts = _draw_nested(fold, 500, seed=0)
    per_fold = np.stack([counts[:, fold == k].sum(axis=1) for k in range(3)], axis=1) / [3, 2, 1]
    assert (per_fold == per_fold.astype(int)).all() and (per_fold.sum(axis=1) == 3).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.15)
    assert (counts[:, 0] != counts[:, 1]).any()
    with pytest.raises(DataError, match="a case is in two folds"):
        replicates([0, 1, 1], [0.1, 0.9, 0.2], [0, 1, 0], ["a", "a", "b"], fold=[0, 1, 1])


def test_chunks_do_not_change_the_auc(monkeypatch: pytest.MonkeyPatch) -> None:
    y, p, called = draw(90, 1)
    case = np.arange(90) % 9
    whole = replicates(y, p, called, case, ["roc_auc"], n=50)["roc_auc"]
    monkeypatch.setattr("midog.metrics.CHUNK", 200)
    assert np.array_equal(whole, replicates(y, p, called, case, ["roc_auc"], n=50)["roc_auc"])


def test_cases_make_intervals_wider_than_patches_do() -> None:
    rng = np.random.default_rng(0)
    case = np.repeat(np.arange(30), 20)
    y = (rng.random(600) < 0.4).astype(int)
    z = (2 * y - 1) * 1.0 + rng.normal(size=30)[case] * 1.5 + rng.normal(size=600)
    p = 1 / (1 + np.exp(-z))
    by_case = bootstrap_by_case(y, p, p > 0.5, case)["balanced_accuracy"]
    by_patch = bootstrap_by_case(y, p, p > 0.5, np.full(600, ""))["balanced_accuracy"]
    assert by_case.high - by_case.low > 1.2 * (by_patch.high - by_patch.low)
    score = scores(y, p, p > 0.5).balanced_accuracy
    assert score is not None and by_case.low < score < by_case.high


def test_the_interval_covers_the_truth() -> None:
    """Of 60 studies of 60 cases, about 95 % of intervals should hold the true AUROC."""
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        case = np.repeat(np.arange(60), 5)
        y = (rng.random(300) < 0.3).astype(int)
        z = y * 1.5 + rng.normal(size=300)
        found = bootstrap_by_case(y, 1 / (1 + np.exp(-z)), z > 0.7, case, ["roc_auc"], n=300, seed=seed)["roc_auc"]
        hits += found.low <= 0.8556 <= found.high  # Φ(1.5 / √2)
    assert 51 <= hits <= 60


def test_no_interval_where_there_is_nothing_to_draw_from() -> None:
    y, p, called = draw(20, 2)
    assert bootstrap_by_case(y, p, called, ["one"] * 20) == {}
    one_class = bootstrap_by_case(np.zeros(20), p, called, np.arange(20))
    assert "roc_auc" not in one_class and "balanced_accuracy" not in one_class and "specificity" in one_class
    assert percentile_interval(np.r_[np.full(20, np.nan), np.ones(80)]) is None


def test_the_same_seed_draws_the_same_cases() -> None:
    y, p, called = draw(80, 4)
    case = np.arange(80) % 8
    assert bootstrap_by_case(y, p, called, case) == bootstrap_by_case(y, p, called, case)
    assert bootstrap_by_case(y, p, called, case, seed=1) != bootstrap_by_case(y, p, called, case)


def test_patches_without_a_case_are_their_own() -> None:
    index, cases = case_index(["b", "", "a", "", "b"])
    assert cases == 4 and index.tolist() == [1, 2, 0, 3, 1]


def test_a_thousand_replicates_of_12000_patches_take_seconds() -> None:
    y, p, called = draw(12_000, 6, levels=5000)
    start = time.perf_counter()
    bootstrap_by_case(y, p, called, np.arange(12_000) % 500)
    assert time.perf_counter() - start < 2


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(DataError, match="no such metric: f1"):
        bootstrap_by_case([0, 1], [0.1, 0.9], [0, 1], ["a", "b"], ["f1"])
