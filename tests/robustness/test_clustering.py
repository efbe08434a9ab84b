"""Clustering score: 1 for clusters of the label, −1 for clusters of the scanner, and scikit-learn's Rand index."""

from __future__ import annotations

import json

import numpy as np
import pytest
from drawn_features import draw
from sklearn.metrics import adjusted_rand_score

from midog.errors import DataError
from midog.robustness.clustering import _cluster, _rand, clustering_card, clustering_score


def one_hot(words: np.ndarray, seed: int = 0) -> np.ndarray:
    codes = np.unique(words, return_inverse=True)[1]
    return np.eye(3)[codes] + 0.01 * np.random.default_rng(seed).normal(size=(len(words), 3))


def test_the_label_gives_1_and_the_scanner_minus_1() -> None:
    drawn = draw(0, 0, cases=8)
    for words, expected in ((drawn.label, 1.0), (drawn.scanner, -1.0)):
        card = clustering_card(one_hot(words), *drawn.all[1:], clusters=range(2, 6), starts=3, runs=5)
        assert card.score == pytest.approx(expected, abs=0.05)
        assert list(card.clusters.values()) == [2]
        assert card.interval is not None and card.interval.low <= card.score + 1e-9


def test_the_score_alone_takes_every_patch() -> None:
    drawn = draw(0, 0, cases=3)
    assert clustering_score(one_hot(drawn.label), drawn.label, drawn.scanner) == pytest.approx(1, abs=0.05)


def test_the_score_is_scikit_learns_averaged_over_runs_and_tables() -> None:
    drawn = draw(1.5, 1.5, cases=6, scanners=3)
    card = clustering_card(*drawn.all, clusters=(3,), runs=4, limit=None)
    assert len(card.clusters) == 3 and card.n == len(drawn.case)
    x = drawn.features / np.linalg.norm(drawn.features, axis=1, keepdims=True)
    expected = []
    for one, other in (("S0", "S1"), ("S0", "S2"), ("S1", "S2")):
        rows = np.flatnonzero(np.isin(drawn.scanner, (one, other)))
        for seed in range(1337, 1341):
            found = _cluster(x[rows], 3, 5, seed)
            expected.append([adjusted_rand_score(words[rows], found) for words in (drawn.label, drawn.scanner)])
    assert (card.label, card.confounder) == pytest.approx(tuple(np.mean(expected, axis=0)), abs=1e-12)
    assert card.score == card.label - card.confounder
    json.dumps(card.to_dict(), allow_nan=False)


def test_the_rand_index_of_a_table() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(4, size=80), rng.integers(2, size=80)
    table = np.zeros((1, 4, 2))
    np.add.at(table[0], (a, b), 1)
    assert _rand(table)[0] == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)


def test_the_same_seed_gives_the_same_card() -> None:
    drawn = draw(1, 1)
    quick = {"clusters": (2, 3), "starts": 2, "runs": 2, "limit": 20}
    card = clustering_card(*drawn.all, **quick)
    assert card == clustering_card(*drawn.all, **quick) and card.n == 80


def test_tables_with_an_empty_cell_are_named() -> None:
    drawn = draw(1, 1, scanners=3)
    kept = ~((drawn.scanner == "S1") & (drawn.label == "normal"))
    card = clustering_card(*(values[kept] for values in drawn.all), clusters=(2,), starts=1, runs=1)
    assert list(card.clusters) == ["atypical, normal in S0, S2"] and len(card.left_out) == 2
    kept &= drawn.scanner != "S0"
    with pytest.raises(DataError, match="no two labels occur together in two domains"):
        clustering_card(*(values[kept] for values in drawn.all))


def test_features_that_do_not_differ_follow_nothing() -> None:
    drawn = draw(1, 1)
    card = clustering_card(np.ones((len(drawn.case), 3)), *drawn.all[1:], clusters=(2, 3), starts=1, runs=1)
    assert card.score == 0
