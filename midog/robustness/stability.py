"""One patch in several views (scanners, restylings): how much do its features, its probability, its class move?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.errors import DataError
from midog.metrics import Interval, case_index
from midog.robustness.inputs import Floats, interval_by_case, sums_by_case


@dataclass(frozen=True)
class Stability:
    """Means over patches with 95 % case-bootstrap intervals.

    `variation` is the coefficient of variation of P(atypical), which grows without bound where that is near 0, as for
    most normal figures; so `logit_range` (largest minus smallest logit) and `flip_rate` (share of patches that do not
    get the same class in all views) stand beside it.
    """

    variation: float
    logit_range: float
    flip_rate: float
    intervals: dict[str, Interval | None]
    n: int
    views: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def align_views(values: ArrayLike, sample: ArrayLike, view: ArrayLike) -> tuple[Floats, list[str], list[str]]:
    """Rows of a long table, one for each sample and view, side by side: what real scanner pairs come as.

    Args:
        values: (rows, …) logits or features. sample, view: (rows,) names: the piece of tissue, the scanner.

    Returns: (samples, views, …), and the names of both, sorted.

    Raises: DataError naming samples that lack a view or have it twice.
    """
    given = np.asarray(values)
    (samples, row), (views, column) = (
        np.unique(np.asarray(words).astype(str), return_inverse=True) for words in (sample, view)
    )
    if not len(given) == len(row) == len(column):
        raise DataError(f"{len(given)} rows, {len(row)} samples, {len(column)} views: one of each for a row is needed")
    held = np.zeros((len(samples), len(views)), dtype=np.int64)
    np.add.at(held, (row, column), 1)
    wrong = [f"{samples[i]} in {views[j]}: {held[i, j]} rows" for i, j in zip(*np.nonzero(held != 1), strict=True)]
    if wrong:
        raise DataError("every sample needs one row in every view", "leave the others out", wrong)
    result = np.empty((len(samples), len(views), *given.shape[1:]), dtype=given.dtype)
    result[row, column] = given
    return result, samples.tolist(), views.tolist()


def coefficient_of_variation(values: ArrayLike) -> Floats:
    """(n,) spread over views relative to the mean over views.

    Args:
        values: (n, views) probabilities: standard deviation (ddof 0) / |mean|; or (n, views, d) features: the root of
            the mean squared distance to the mean vector, over that vector's length, which is the same for d = 1.

    Returns: 0 where all views are equal, also where all are 0.

    Raises: DataError for fewer than two views, values that are not finite, or a mean of 0 with a spread, of which no
        ratio exists. Source: Carloni et al., arXiv 2507.22092, for probabilities; for features our choice.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim == 2:
        x = x[:, :, None]
    if x.ndim != 3 or x.shape[1] < 2 or not x.size:
        raise DataError(f"views are {x.shape}: (patches, at least two views) or (patches, views, features) are needed")
    if not np.isfinite(x).all():
        raise DataError(f"{int((~np.isfinite(x)).any(axis=(1, 2)).sum())} patches have views that are not finite")
    mean = x.mean(axis=1, keepdims=True)
    # Rounding in a mean of equal numbers must not look like a spread.
    equal = (x == x[:, :1]).all(axis=(1, 2))
    spread = np.where(equal, 0.0, np.sqrt(((x - mean) ** 2).sum(axis=2).mean(axis=1)))
    length = np.sqrt((mean[:, 0] ** 2).sum(axis=1))
    undefined = (length == 0) & (spread > 0)
    if undefined.any():
        raise DataError(
            f"{int(undefined.sum())} patches have views around a mean of 0: no coefficient of variation exists",
            "measure probabilities rather than logits (`view_stability` takes logits)",
        )
    return np.asarray(np.divide(spread, length, out=np.zeros_like(spread), where=length > 0))


def view_stability(logits: ArrayLike, group: ArrayLike, threshold: float = 0.5, seed: int = 0) -> Stability:
    """Stability of a model's answers over views.

    Args:
        logits: (n, views) logits of *atypical* of the same patches in each view, finite.
        group: (n,) case of each patch.
        threshold: P(atypical) from which a patch is called atypical.
    """
    z = np.asarray(logits, dtype=np.float64)
    if z.ndim != 2:
        raise DataError(f"logits are {z.shape}: (patches, views) are needed")
    p = 0.5 * (1.0 + np.tanh(0.5 * z))
    called = p >= threshold
    columns = np.stack(
        [coefficient_of_variation(p), z.max(axis=1) - z.min(axis=1), called.any(axis=1) & ~called.all(axis=1)], axis=1
    )
    means = columns.mean(axis=0)
    index, cases = case_index(group)
    if len(index) != len(z):
        raise DataError(f"{len(index)} cases for {len(z)} patches")
    sums, patches = sums_by_case(columns, index, cases), np.bincount(index, minlength=cases)
    intervals = {
        name: interval_by_case(cases, partial(_share, sums[:, at], patches), seed)
        for at, name in enumerate(("variation", "logit_range", "flip_rate"))
    }
    return Stability(float(means[0]), float(means[1]), float(means[2]), intervals, len(z), z.shape[1])


def _share(sums: Floats, patches: NDArray[np.int64], drawn: Floats) -> Floats:
    """Mean over the patches of the cases drawn."""
    return np.asarray(drawn @ sums / (drawn @ patches))
