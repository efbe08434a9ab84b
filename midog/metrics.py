"""The challenge's scores, overall and by group, with case-bootstrap intervals. numpy only: the container carries it.

Atypical is the positive class everywhere. A score that is not defined (one class only, no patch) is None, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.errors import DataError

METRICS = ("balanced_accuracy", "sensitivity", "specificity", "accuracy", "roc_auc", "log_loss")
LEVEL = 0.95
REPLICATES = 1000
CHUNK = 1 << 20
"""Numbers held at once while the AUROC is bootstrapped; about 8 MB, which a processor's cache nearly holds."""
DEFINED = 0.9
"""Share of replicates in which a score must be defined for it to get an interval (our choice)."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """Scores of one set of patches; None where undefined. `n` patches, of which `n_atypical` are atypical."""

    balanced_accuracy: float | None
    sensitivity: float | None
    specificity: float | None
    accuracy: float | None
    roc_auc: float | None
    log_loss: float | None
    n: int
    n_atypical: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Interval:
    """A percentile interval of the case bootstrap."""

    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return {"low": self.low, "high": self.high}


def scores(label: ArrayLike, confidence: ArrayLike, predicted: ArrayLike) -> Scores:
    """The challenge's scores from pooled patches.

    Args:
        label: (n,) 0 = normal, 1 = atypical.
        confidence: (n,) P(atypical) in [0, 1]; it alone makes `roc_auc` and `log_loss`.
        predicted: (n,) bool, True = called atypical; it alone makes the other four.

    Raises: DataError for unequal lengths, unknown labels, or confidences that are no probabilities.
    """
    y, p, called = _checked(label, confidence, predicted)
    n, positives = len(y), int(y.sum())
    sensitivity = _share(int((called & y).sum()), positives)
    specificity = _share(int((~called & ~y).sum()), n - positives)
    balanced = None if sensitivity is None or specificity is None else (sensitivity + specificity) / 2
    return Scores(
        balanced_accuracy=balanced,
        sensitivity=sensitivity,
        specificity=specificity,
        accuracy=_share(int((called == y).sum()), n),
        roc_auc=_roc_auc(y, p),
        log_loss=float(_losses(y, p).mean()) if n else None,
        n=n,
        n_atypical=positives,
    )


def scores_by(label: ArrayLike, confidence: ArrayLike, predicted: ArrayLike, group: ArrayLike) -> dict[str, Scores]:
    """`scores` of each group (domain, tumour, scanner, laboratory), in order of the groups' names."""
    y, p, called = _checked(label, confidence, predicted)
    names = np.asarray(group).astype(str)
    if names.shape != y.shape:
        raise DataError(f"{len(names)} groups for {len(y)} labels")
    return {str(name): scores(y[names == name], p[names == name], called[names == name]) for name in np.unique(names)}


def bootstrap_by_case(
    label: ArrayLike,
    confidence: ArrayLike,
    predicted: ArrayLike,
    case: ArrayLike,
    metrics: Sequence[str] = METRICS,
    n: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Interval]:
    """95 % percentile intervals of `metrics`, cases drawn with replacement.

    Patches of one case stand or fall together, so drawing patches would give intervals that are too narrow.
    A metric is left out where it is undefined in more than a tenth of the replicates, and everything is left out
    where there are fewer than two cases. A patch without a case is a case of its own.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 13; cases as the unit: our choice.
    """
    found = replicates(label, confidence, predicted, case, metrics, n, seed)
    result = {}
    for name, values in found.items():
        interval = percentile_interval(values)
        if interval is not None:
            result[name] = interval
    return result


def percentile_interval(values: Floats, level: float = LEVEL) -> Interval | None:
    """The central `level` of bootstrap replicates; None where too many are undefined (NaN)."""
    defined = values[~np.isnan(values)]
    if len(defined) == 0 or len(defined) < DEFINED * len(values):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def replicates(
    label: ArrayLike,
    confidence: ArrayLike,
    predicted: ArrayLike,
    case: ArrayLike,
    metrics: Sequence[str] = METRICS,
    n: int = REPLICATES,
    seed: int = 0,
    fold: ArrayLike | None = None,
) -> dict[str, Floats]:
    """Bootstrap replicates of each metric, (n,) float64, NaN where undefined.

    With `fold` (n,), folds are drawn first and then cases within each: what one fold model is by luck of its training
    is then part of the spread. Source: Davison & Hinkley 1997, Bootstrap Methods, section 3.8; folds: our choice.

    The draws depend on the cases, `n` and `seed` alone: two classifiers scored on the same patches get the same
    draws, and the difference of their replicates is the paired bootstrap.
    """
    y, p, called = _checked(label, confidence, predicted)
    absent = [name for name in metrics if name not in METRICS]
    if absent:
        raise DataError(f"no such metric: {', '.join(absent)}", f"choose from {', '.join(METRICS)}")
    index, cases = case_index(case)
    if len(index) != len(y):
        raise DataError(f"{len(index)} cases for {len(y)} labels")
    if cases < 2:
        return {name: np.full(n, np.nan) for name in metrics}
    counts = draw_cases(cases, n, seed) if fold is None else _draw_nested(_fold_of_cases(fold, index, cases), n, seed)
    found = _from_sums(y, p, called, index, counts)
    if "roc_auc" in metrics:
        found["roc_auc"] = _auc_replicates(y, p, index, counts)
    return {name: found[name] for name in metrics}


def case_index(case: ArrayLike) -> tuple[Ints, int]:
    """Number each patch's case: (n,) int64 in order of the cases' names, and how many there are.

    A patch with an empty case is a case of its own, numbered after the named ones.
    """
    names = np.asarray(case).astype(str)
    alone = names == ""
    named, inverse = np.unique(names[~alone], return_inverse=True)
    index = np.empty(len(names), dtype=np.int64)
    index[~alone] = inverse
    index[alone] = len(named) + np.arange(int(alone.sum()))
    return index, len(named) + int(alone.sum())


def _checked(label: ArrayLike, confidence: ArrayLike, predicted: ArrayLike) -> tuple[Bools, Floats, Bools]:
    y, p, called = np.asarray(label), np.asarray(confidence, dtype=np.float64), np.asarray(predicted).astype(bool)
    if y.ndim != 1 or y.shape != p.shape or y.shape != called.shape:
        raise DataError(
            f"labels {y.shape}, confidences {p.shape}, classes {called.shape}: one of each per patch needed"
        )
    problems = []
    if not np.isin(y, (0, 1)).all():
        problems.append(f"{int((~np.isin(y, (0, 1))).sum())} labels are neither 0 (normal) nor 1 (atypical)")
    outside = ~((p >= 0) & (p <= 1))
    if outside.any():
        problems.append(f"{int(outside.sum())} confidences are no probabilities, e.g. {p[outside][0]}")
    if problems:
        raise DataError("these predictions cannot be scored", "confidence is P(atypical), 0 to 1", problems)
    return y.astype(bool), p, called


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _roc_auc(y: Bools, p: Floats) -> float | None:
    """Mann-Whitney: share of (atypical, normal) pairs in the right order, ties one half. Exact in integers."""
    positive, negative = p[y], np.sort(p[~y])
    if not len(positive) or not len(negative):
        return None
    below = np.searchsorted(negative, positive, "left").astype(np.int64)
    twice = int(below.sum()) + int(np.searchsorted(negative, positive, "right").astype(np.int64).sum())
    return twice / (2 * len(positive) * len(negative))


def _losses(y: Bools, p: Floats) -> Floats:
    """Log-loss of each patch, confidences clipped to the float64 resolution as scikit-learn does."""
    right = np.where(y, p, 1 - p)
    return np.asarray(-np.log(np.clip(right, np.finfo(np.float64).eps, 1.0)), dtype=np.float64)


def draw_cases(cases: int, n: int, seed: int) -> Floats:
    """(n, cases): how often each case is in each replicate."""
    drawn = np.random.default_rng(seed).integers(cases, size=(n, cases))
    drawn += np.arange(n)[:, None] * cases
    return np.bincount(drawn.ravel(), minlength=n * cases).reshape(n, cases).astype(np.float64)


def _fold_of_cases(fold: ArrayLike, index: Ints, cases: int) -> Ints:
    """(cases,) number of each case's fold."""
    numbers = np.unique(np.asarray(fold), return_inverse=True)[1]
    result = np.empty(cases, dtype=np.int64)
    result[index] = numbers
    if not np.array_equal(result[index], numbers):
        raise DataError("a case is in two folds: its patches cannot be drawn together")
    return result


def _draw_nested(fold: Ints, n: int, seed: int) -> Floats:
    """(n, cases): as many folds as there are, drawn with replacement, and in each as many cases as it has."""
    rng = np.random.default_rng(seed)
    sizes = np.bincount(fold)
    order = np.argsort(fold, kind="stable")
    starts = np.cumsum(sizes) - sizes
    counts = np.zeros((n, len(fold)))
    replicate = np.arange(n)[:, None]
    for _ in range(len(sizes)):
        chosen = rng.integers(len(sizes), size=n)[:, None]
        place = np.floor(rng.random((n, int(sizes.max()))) * sizes[chosen]).astype(np.int64)
        used = np.arange(place.shape[1]) < sizes[chosen]
        drawn = order[starts[chosen] + place]
        np.add.at(counts, (np.broadcast_to(replicate, drawn.shape)[used], drawn[used]), 1.0)
    return counts


def _from_sums(y: Bools, p: Floats, called: Bools, index: Ints, counts: Floats) -> dict[str, Floats]:
    """Replicates of every metric that is a ratio of sums over cases."""
    columns = (called & y, y, ~called & ~y, ~y, _losses(y, p))
    sums = np.stack([np.bincount(index, column, counts.shape[1]) for column in columns], axis=1)
    true_positive, positive, true_negative, negative, loss = (counts @ sums).T
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity, specificity = true_positive / positive, true_negative / negative
        n = positive + negative
        return {
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "sensitivity": sensitivity,
            "specificity": specificity,
            "accuracy": (true_positive + true_negative) / n,
            "log_loss": loss / n,
        }


def _auc_replicates(y: Bools, p: Floats, index: Ints, counts: Floats) -> Floats:
    """AUROC of each replicate. Sorted once: a replicate only changes how much each patch weighs."""
    order = np.argsort(p[~y], kind="stable")
    negative, negative_case = p[~y][order], index[~y][order]
    positive, positive_case = p[y], index[y]
    if not len(positive) or not len(negative):
        return np.full(len(counts), np.nan)
    left = np.searchsorted(negative, positive, "left")
    right = np.searchsorted(negative, positive, "right")
    result = np.empty(len(counts))
    step = max(1, CHUNK // len(y))
    for start in range(0, len(counts), step):
        part = counts[start : start + step]
        below = np.zeros((len(part), len(negative) + 1))
        np.cumsum(np.take(part, negative_case, axis=1), axis=1, out=below[:, 1:])
        weight = np.take(part, positive_case, axis=1)
        twice = np.einsum("ij,ij->i", np.take(below, left, axis=1) + np.take(below, right, axis=1), weight)
        with np.errstate(invalid="ignore", divide="ignore"):
            result[start : start + step] = twice / (2 * weight.sum(axis=1) * below[:, -1])
    return result
