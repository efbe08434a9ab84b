"""What every measurement here asks of its arrays, and the case bootstrap that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.errors import DataError
from midog.metrics import REPLICATES, Interval, draw_cases, percentile_interval

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


def checked_features(features: ArrayLike) -> Floats:
    """(n, d) finite feature vectors as an array: float64 stays, everything else becomes float32.

    Raises: DataError for another shape, no rows, or values that are not finite, naming the first row.
    """
    x = np.asarray(features)
    if x.ndim != 2 or not x.size:
        raise DataError(f"features are {x.shape}: one row a patch and one column a feature are needed")
    if x.dtype != np.float64:
        x = x.astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(x)} feature vectors are not finite, the first in row {bad[0]}",
            "leave these rows out, or compute the features again in float32",
        )
    return x


def unit_rows(features: ArrayLike) -> Floats:
    """`checked_features` with rows of length 1.

    Raises: DataError also for a vector of zeros, which has no direction.
    """
    x = checked_features(features)
    length = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
    zero = np.flatnonzero(length == 0)
    if len(zero):
        raise DataError(f"{len(zero)} feature vectors are all zeros, the first in row {zero[0]}", "leave them out")
    return np.asarray(x / length[:, None].astype(x.dtype))


def levels(words: ArrayLike, what: str, n: int) -> tuple[Ints, list[str]]:
    """(n,) numbers of the words' levels, in order of their names, and those names.

    Raises: DataError for another length than n, an empty word, or a single level: nothing can be told apart then.
    """
    given = np.asarray(words).astype(str)
    if given.shape != (n,):
        raise DataError(f"{what} has shape {given.shape} for {n} feature vectors: one word for each is needed")
    empty = int((given == "").sum())
    if empty:
        raise DataError(f"{empty} of {n} rows have no {what}", "leave these rows out")
    names, codes = np.unique(given, return_inverse=True)
    if len(names) < 2:
        raise DataError(
            f"{what} has one level: {names[0]}",
            f"choose another {what}, or add rows of another level: there is nothing to compare",
        )
    return codes.astype(np.int64), [str(name) for name in names]


def interval_by_case(cases: int, statistic: Callable[[Floats], Floats], seed: int = 0) -> Interval | None:
    """95 % percentile interval of a statistic, cases drawn with replacement.

    Args:
        cases: how many there are; with fewer than two there is no interval.
        statistic: (replicates, cases) how often each case was drawn → (replicates,) values, NaN where undefined.

    Source: as `midog.metrics.bootstrap_by_case`, with the same draws.
    """
    if cases < 2:
        return None
    return percentile_interval(np.asarray(statistic(draw_cases(cases, REPLICATES, seed)), dtype=np.float64))


def sums_by_case(values: ArrayLike, index: Ints, cases: int) -> Floats:
    """(n, …) values summed over the rows of each case: (cases, …) float64."""
    given = np.asarray(values)
    sums = np.zeros((cases, *given.shape[1:]))
    np.add.at(sums, index, given)
    return sums
