"""Balanced pairs: chance is a half, whatever the table's counts."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_features import draw

from midog.errors import DataError
from midog.robustness.paired import paired_robustness
from midog.robustness.pathorob import chance_robustness_index, robustness_card


def unbalanced(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Noise, on a table in which noise has an index of nearly .9; every patch a case of its own."""
    rng = np.random.default_rng(seed)
    n = 2400
    label = np.where(rng.random(n) < 0.2, "atypical", "normal")
    scanner = rng.choice(["A", "B", "C", "D"], size=n, p=[0.4, 0.3, 0.2, 0.1])
    return rng.normal(size=(n, 10)), label, scanner, np.arange(n)


def test_noise_has_an_index_of_a_half() -> None:
    table = unbalanced()
    assert chance_robustness_index(*table[1:3]) > 0.8
    found = paired_robustness(*table)
    assert found.card.chance == pytest.approx(0.5, abs=1e-12) and len(found.pairs) == 6 and not found.left_out
    assert found.card.robustness_index == pytest.approx(0.5, abs=0.03)
    assert found.card.interval is not None and found.card.interval.low < 0.5 < found.card.interval.high


def test_cells_are_of_equal_size_and_counts_are_pooled() -> None:
    """A balanced table with one pair is drawn whole each time: the pooled index is the plain one."""
    drawn = draw(1, 1)
    found = paired_robustness(*drawn.all, repeats=3)
    plain = robustness_card(*drawn.all)
    assert found.pairs == ("atypical, normal in S0, S1",) and found.card.n == 3 * plain.n == 3 * 144
    assert (found.card.so, found.card.os) == (3 * plain.so, 3 * plain.os)
    for name in ("robustness_index", "chance", "support", "interval"):
        assert getattr(found.card, name) == pytest.approx(getattr(plain, name))
    assert found.card in found.curve and found.card.k == 11


def test_every_pair_of_labels_in_every_pair_of_scanners() -> None:
    rng = np.random.default_rng(1)
    label, scanner = rng.choice(list("abc"), 600), rng.choice(list("XYZ"), 600)
    found = paired_robustness(rng.normal(size=(600, 4)), label, scanner, np.arange(600), repeats=1)
    assert len(found.pairs) == 9 and "a, c in X, Z" in found.pairs


def test_pairs_that_cannot_be_compared_are_named() -> None:
    drawn = draw(1, 1, scanners=3)
    x, label, scanner, case = drawn.all
    kept = ~((scanner == "S2") & (label == "atypical"))
    found = paired_robustness(x[kept], label[kept], scanner[kept], case[kept])
    assert found.pairs == ("atypical, normal in S0, S1",)
    assert found.left_out == tuple(f"atypical, normal in {one}, S2: a cell is empty" for one in ("S0", "S1"))
    with pytest.raises(DataError, match=r"no pair can be compared at k = 200\n.*only 138 patches of other cases"):
        paired_robustness(*draw(1, 1).all, k=200)


def test_the_same_seed_draws_the_same_cells() -> None:
    table = unbalanced(1)
    assert paired_robustness(*table, repeats=1) == paired_robustness(*table, repeats=1)
    assert paired_robustness(*table, repeats=1).card != paired_robustness(*table, repeats=1, seed=1).card
