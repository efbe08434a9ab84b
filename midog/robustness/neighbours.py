"""The one neighbour search: the k most similar patches of other cases, a block of rows at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.errors import DataError, UsageError
from midog.metrics import case_index
from midog.robustness.inputs import Floats, unit_rows

MUTUAL = 10
"""Neighbours that two sets of features are compared by."""
BLOCK = 1 << 24
"""Similarities held at once: 64 MB in float32. The whole matrix of 12,000 patches would be ten times that."""


def shortest_list(group: ArrayLike) -> int:
    """How many candidates the patch with the fewest has: those of all other groups. The largest k that can be asked."""
    index, groups = case_index(group)
    return len(index) - int(np.bincount(index, minlength=groups).max(initial=0))


def neighbours(features: ArrayLike, group: ArrayLike, k: int) -> NDArray[np.intp]:
    """The k nearest patches of other groups, nearest first, by cosine (Euclidean on rows of length 1).

    Args:
        features: (n, d) finite; computed in float64 where they are, else in float32.
        group: (n,) case of each patch; a patch is never its own neighbour, nor is one of its case.
        k: at most `shortest_list(group)`.

    Returns: (n, k) row numbers. Equal similarities are ordered by row number (our choice).

    Raises: UsageError for a k that is too large or below 1; DataError for features that cannot be used.
    """
    x = unit_rows(features)
    index, groups = case_index(group)
    if len(index) != len(x):
        raise DataError(f"{len(index)} cases for {len(x)} feature vectors")
    if groups < 2:
        raise DataError("all patches belong to one case: none has a neighbour in another", "add cases")
    longest = shortest_list(group)
    if not 1 <= k <= longest:
        raise UsageError(
            f"k is {k}, and some patch has only {longest} patches of other cases",
            f"a k from 1 to {longest}",
        )
    found = np.empty((len(x), k), dtype=np.intp)
    rows = max(1, BLOCK // len(x))
    for start in range(0, len(x), rows):
        similar = x[start : start + rows] @ x.T
        similar[index[start : start + rows, None] == index] = -np.inf
        found[start : start + rows] = _largest(similar, k)
    return found


def mutual_neighbours(a: ArrayLike, b: ArrayLike, k: int = MUTUAL) -> NDArray[np.float64]:
    """(n,) share, 0 to 1, of each patch's k nearest by features `a` that are among its k nearest by `b`.

    Args:
        a, b: (n, …) finite features of the same patches in the same order; their widths may differ.
        k: at most n − 1: every other patch is a candidate, those of the same case too.

    Returns: 1 where both agree; features that have nothing to do with each other share k/(n − 1) on average.

    Source: mutual k-nearest-neighbour alignment, Huh et al. 2024 (arXiv 2405.07987); by cosine, ties as `neighbours`.

    Raises: DataError for unequal numbers of patches, fewer than two, or features that cannot be used; UsageError for
        a k that is too large or below 1.
    """
    n = len(np.asarray(a))
    if len(np.asarray(b)) != n:
        raise DataError(f"{n} and {len(np.asarray(b))} feature vectors: the same patches are needed twice")
    near_a, near_b = (neighbours(features, np.arange(n), k) for features in (a, b))
    return np.asarray((near_a[:, :, None] == near_b[:, None, :]).any(axis=2).mean(axis=1), dtype=np.float64)


def _largest(values: Floats, k: int) -> NDArray[np.intp]:
    """(rows, k) columns of each row's k largest values, largest first, equal ones in the order of their columns."""
    found = np.argpartition(values, -k, axis=1)[:, -k:]
    last = np.take_along_axis(values, found, axis=1).min(axis=1)
    # A partition takes any of several equal values; where that matters the row is done again.
    for row in np.flatnonzero((values >= last[:, None]).sum(axis=1) > k):
        tied = np.flatnonzero(values[row] >= last[row])
        found[row] = tied[np.argsort(-values[row, tied], kind="stable")[:k]]
    found.sort(axis=1)
    order = np.argsort(-np.take_along_axis(values, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)
