"""What parts share: settings, scores with their intervals as plain JSON, a probe that never sees a patch's case."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.errors import DataError, UsageError
from midog.metrics import bootstrap_by_case, case_index, mean_replicates, percentile_interval, replicates, scores
from midog.report.findings import FEW

METRICS = ("balanced_accuracy", "roc_auc")
FOLDS = 5
Floats = NDArray[np.float64]
Estimate = dict[str, float | None]
Pair = tuple[ArrayLike, ArrayLike]
"""Confidence and class of the same patches."""


@dataclass(frozen=True)
class Settings:
    """limit: patches of the parts that ask again and again (views, curves); those that ask once take `ONCE` times as
    many, attacks a fifth; 0: all. watts: of one busy CPU core; grams_per_kwh: of CO2, our choice for a mixed grid. Both
    are declared, not measured: energy and CO2 are estimates."""

    limit: int = 300
    seed: int = 0
    watts: float = 10.0
    grams_per_kwh: float = 400.0

    def __post_init__(self) -> None:
        if self.limit < 0 or 0 < self.limit < 10:
            raise UsageError(f"a limit of {self.limit} patches", "--limit 300, or 0 for all")


ONCE = 5


def score(label: ArrayLike, p: ArrayLike, called: ArrayLike, case: ArrayLike) -> dict[str, Any]:
    """Balanced accuracy and AUROC with 95 % case-bootstrap intervals; None where a class is missing.

    `few`: fewer than 30 atypical patches, so that it may be shown but not ranked.
    """
    found, intervals = scores(label, p, called), bootstrap_by_case(label, p, called, case, METRICS)
    return {
        "n": found.n,
        "n_atypical": found.n_atypical,
        "few": found.n_atypical < FEW,
        "sensitivity": found.sensitivity,
        "specificity": found.specificity,
        **{name: estimate(getattr(found, name), intervals.get(name)) for name in METRICS},
    }


def gain(label: ArrayLike, case: ArrayLike, ours: Pair, theirs: Pair) -> dict[str, Any]:
    """Scores of ours minus theirs, with intervals paired by case."""
    result = {}
    a, b = (scores(label, *pair) for pair in (ours, theirs))
    many_a, many_b = (replicates(label, p, called, case, METRICS) for p, called in (ours, theirs))
    for name in METRICS:
        before, after = getattr(b, name), getattr(a, name)
        known = before is not None and after is not None
        result[name] = estimate(
            after - before if known else None, percentile_interval(many_a[name] - many_b[name]) if known else None
        )
    return result


def mean(values: ArrayLike, case: ArrayLike) -> Estimate:
    """A mean over patches with its interval."""
    number = np.asarray(values, dtype=np.float64)
    return estimate(float(number.mean()), percentile_interval(mean_replicates(number, case)))


def estimate(value: float | None, interval: Any = None) -> Estimate:
    """A value and its interval as plain JSON; an `Interval`, a mapping with low and high, or None."""
    if value is None or interval is None:
        return {"value": value, "low": None, "high": None}
    both = interval if isinstance(interval, Mapping) else interval.to_dict()
    return {"value": float(value), "low": float(both["low"]), "high": float(both["high"])}


def case_folds(label: ArrayLike, case: ArrayLike, seed: int = 0) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(train, test) places of five folds by case, or as many as the rarer class has cases.

    Raises: DataError where a class is missing, or has a single case.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    y, index = np.asarray(label), case_index(case)[0]
    found = StratifiedGroupKFold(fold_count(y, case), shuffle=True, random_state=seed).split(y, y, index)
    return [(train.astype(np.int64), test.astype(np.int64)) for train, test in found]


def fold_count(label: ArrayLike, case: ArrayLike) -> int:
    """Five folds by case, or as many as the rarer class has cases. Raises: DataError as `case_folds`."""
    y, index = np.asarray(label), case_index(case)[0]
    cases = {name: len(np.unique(index[y == value])) for value, name in ((0, "normal"), (1, "atypical"))}
    folds = min(FOLDS, *cases.values())
    if folds < 2:
        raise DataError(
            "a probe needs two cases of each class to be tested on cases that it never saw",
            "more patches: --limit 0, or a table with more cases",
            [f"{name}: {count} cases" for name, count in cases.items()],
        )
    return folds


def probe(x: NDArray[Any], y: NDArray[Any], unseen: NDArray[Any]) -> Floats:
    """P(atypical) of `unseen` rows by a logistic regression fitted on (x, y), classes weighted alike, C = 1.

    Of one class alone nothing can be learnt: every answer is .5 then.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(y)) < 2:
        return np.full(len(unseen), 0.5)
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=200, tol=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # separable features never converge, and need not
        return np.asarray(model.fit(x, y).predict_proba(unseen)[:, 1], dtype=np.float64)


def probe_out_of_fold(x: NDArray[Any], label: ArrayLike, case: ArrayLike, seed: int = 0) -> Floats:
    """(n,) P(atypical), each from a probe that never saw the patch's case.

    Raises: DataError for features that are not finite, and as `case_folds`.
    """
    y, p = np.asarray(label), np.empty(len(x))
    check_finite(x)
    for train, test in case_folds(y, case, seed):
        p[test] = probe(x[train], y[train], x[test])
    return p


def check_finite(x: NDArray[Any]) -> None:
    """Raises: DataError for feature vectors that are not finite."""
    bad = int((~np.isfinite(x).all(axis=1)).sum())
    if bad:
        raise DataError(f"{bad} of {len(x)} feature vectors are not finite", "compute them again in float32")


def groups(columns: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """(by, group, rows) of every group of every column; patches without a word are in none."""
    for by, words in columns.items():
        for name in np.unique(words.astype(str)):
            if name:
                yield by, str(name), words.astype(str) == name
