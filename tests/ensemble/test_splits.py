from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.splits import case_parts
from midog.errors import DataError


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 60), st.integers(0, 10**6))
def test_cases_stay_whole_and_parts_are_balanced(cases: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = rng.integers(0, cases, cases * 12).astype(str)
    y = rng.random(len(case)) < 0.3
    part = case_parts(case, y, seed=seed)
    assert set(part) == set(range(5))
    assert all(len(set(part[case == c])) == 1 for c in set(case))
    largest = max((y & (case == c)).sum() for c in set(case))
    atypical = np.bincount(part, y, 5)
    assert atypical.max() - atypical.min() <= 2 * largest


def test_the_seed_decides() -> None:
    case = np.repeat(np.arange(40), 5)
    y = np.tile([1, 0, 0, 0, 0], 40)
    assert np.array_equal(case_parts(case, y, seed=3), case_parts(case, y, seed=3))
    assert not np.array_equal(case_parts(case, y, seed=3), case_parts(case, y, seed=4))


def test_the_order_of_patches_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    case, y = rng.integers(0, 20, 200), rng.integers(0, 2, 200)
    order = rng.permutation(200)
    assert np.array_equal(case_parts(case[order], y[order]), case_parts(case, y)[order])


def test_a_class_in_one_case_cannot_be_cross_fitted() -> None:
    with pytest.raises(DataError, match="no atypical patch is left"):
        case_parts(["a", "b", "c"], [1, 0, 0])
