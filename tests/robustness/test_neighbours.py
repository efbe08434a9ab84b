"""The neighbour search equals a plain sort, in blocks, with ties, and never inside a case."""

from __future__ import annotations

import numpy as np
import pytest

from midog.errors import DataError, UsageError
from midog.robustness.neighbours import mutual_neighbours, neighbours, shortest_list


def plain(features: np.ndarray, group: np.ndarray, k: int) -> np.ndarray:
    """All similarities, sorted by descending similarity and then by row."""
    x = features / np.linalg.norm(features, axis=1, keepdims=True)
    rows = []
    for i in range(len(x)):
        similar = np.where(group == group[i], -np.inf, x @ x[i])
        rows.append(np.lexsort((np.arange(len(x)), -similar))[:k])
    return np.array(rows)


@pytest.mark.parametrize("block", [1, 700, 1 << 24])
def test_equals_a_plain_sort_in_blocks_of_any_size(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, group = rng.normal(size=(90, 7)), rng.integers(12, size=90)
    monkeypatch.setattr("midog.robustness.neighbours.BLOCK", block)
    assert np.array_equal(neighbours(x, group, 40), plain(x, group, 40))


def test_equal_similarities_come_in_the_order_of_rows() -> None:
    """Vectors along the axes: similarities are exactly 0 or 1, and most of them tie."""
    x = np.eye(4)[np.random.default_rng(1).integers(4, size=60)] * 2.0
    for k in (1, 5, 30, 59):
        assert np.array_equal(neighbours(x, np.arange(60), k), plain(x, np.arange(60), k))


def test_no_neighbour_is_of_the_same_case() -> None:
    rng = np.random.default_rng(2)
    case = np.repeat(np.arange(10), 8)
    x = rng.normal(size=(10, 5))[case] + 0.01 * rng.normal(size=(80, 5))  # a case's own patches are by far the nearest
    near = neighbours(x, case, shortest_list(case))
    assert (case[near] != case[:, None]).all() and shortest_list(case) == 72
    assert all(len(set(row)) == 72 for row in near)


def test_patches_without_a_case_exclude_themselves_alone() -> None:
    x = np.random.default_rng(3).normal(size=(6, 3))
    near = neighbours(x, [""] * 6, 5)
    assert [sorted(row) for row in near] == [[j for j in range(6) if j != i] for i in range(6)]


def test_what_cannot_be_searched() -> None:
    x = np.random.default_rng(4).normal(size=(6, 3))
    case = np.array(["a", "a", "a", "b", "b", "c"])
    with pytest.raises(UsageError, match=r"k is 4, and some patch has only 3 .*\n.*from 1 to 3"):
        neighbours(x, case, 4)
    with pytest.raises(UsageError, match="k is 0"):
        neighbours(x, case, 0)
    with pytest.raises(DataError, match="one case"):
        neighbours(x, ["a"] * 6, 1)
    with pytest.raises(DataError, match="5 cases for 6 feature vectors"):
        neighbours(x, case[:5], 1)
    x[2, 1] = np.nan
    with pytest.raises(DataError, match="1 of 6 feature vectors are not finite, the first in row 2"):
        neighbours(x, case, 1)
    x[2] = 0
    with pytest.raises(DataError, match="1 feature vectors are all zeros, the first in row 2"):
        neighbours(x, case, 1)
    with pytest.raises(DataError, match="one row a patch"):
        neighbours(x[0], case, 1)


def test_equal_features_share_all_neighbours_and_unrelated_ones_as_many_as_chance() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(201, 16))
    turned = x @ np.linalg.qr(rng.normal(size=(16, 16)))[0]
    assert mutual_neighbours(x, x).tolist() == [1.0] * 201 and mutual_neighbours(x, 3 * turned).mean() == 1
    unrelated = np.mean([mutual_neighbours(x, rng.normal(size=(201, 5)), 20).mean() for _ in range(10)])
    assert unrelated == pytest.approx(20 / 200, abs=0.01)


def test_shared_neighbours_of_a_hand_made_case() -> None:
    """Four directions; the second features swap two of them, so that some lists of two change by one."""
    angle = np.array([0.0, 10.0, 30.0, 70.0])
    a, b = (np.stack([np.cos(np.radians(x)), np.sin(np.radians(x))], axis=1) for x in (angle, angle[[0, 3, 2, 1]]))
    # a: 0→{1,2} 1→{0,2} 2→{1,0} 3→{2,1}; b: 0→{3,2} 1→{2,3} 2→{3,0} 3→{0,2}
    assert mutual_neighbours(a, b, 2).tolist() == [0.5, 0.5, 0.5, 0.5]
    assert mutual_neighbours(a, b, 2).tolist() == mutual_neighbours(b, a, 2).tolist()
    assert mutual_neighbours(a, b, 3).tolist() == [1.0] * 4  # everybody is everybody's neighbour


def test_patches_that_cannot_be_compared() -> None:
    x = np.eye(4)
    with pytest.raises(DataError, match="4 and 3 feature vectors"):
        mutual_neighbours(x, x[:3])
    with pytest.raises(UsageError, match="a k from 1 to 3"):
        mutual_neighbours(x, x, 4)
