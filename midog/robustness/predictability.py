"""Can a simple classifier tell the scanner, or the tumour, from the features? Chance is one over the number of levels.

A case-grouped cross-validated logistic regression: what it finds is in the features, what it does not may still be.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from midog.errors import DataError, UsageError
from midog.metrics import Interval, case_index
from midog.robustness.inputs import Floats, checked_features, interval_by_case, levels, sums_by_case

FOLDS = 5


@dataclass(frozen=True)
class Predictability:
    """`balanced_accuracy` is the mean recall over levels, out of fold; `chance` what guessing gives; `interval` the
    95 % case bootstrap of the scores alone, the classifiers as they are; `recall` that of each level."""

    balanced_accuracy: float
    chance: float
    interval: Interval | None
    recall: dict[str, float]
    n: int
    cases: int
    folds: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def predictability(
    features: ArrayLike, target: ArrayLike, group: ArrayLike, folds: int = FOLDS, seed: int = 0
) -> Predictability:
    """How well `target` is told from features of cases that the classifier never saw.

    Args:
        features: (n, d) finite; each is brought to mean 0 and variance 1 on the training part of a fold.
        target: (n,) scanner, tumour, label: words.
        group: (n,) case of each patch, never in two folds.
        folds: of the cross-validation, at most the cases that the rarest level has.

    Source: our choice: L2 logistic regression, C = 1, levels weighted equally.

    Raises: DataError where a level has fewer cases than there are folds; UsageError for fewer than two folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = checked_features(features)
    codes, names = levels(target, "target", len(x))
    index, cases = case_index(group)
    if len(index) != len(x):
        raise DataError(f"{len(index)} cases for {len(x)} feature vectors")
    _check_folds(folds, [(name, len(np.unique(index[codes == at]))) for at, name in enumerate(names)])
    right = np.zeros(len(x), dtype=bool)
    for train, test in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(x, codes, index):
        lacking = sorted(set(range(len(names))) - set(codes[train].tolist()))
        if lacking:
            raise DataError(
                f"{names[lacking[0]]} is not in the training part of a fold",
                "fewer folds, or more cases of it",
            )
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=200, tol=1e-3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # separable features never converge, and need not
            right[test] = model.fit(x[train], codes[train]).predict(x[test]) == codes[test]
    level = np.eye(len(names))[codes]
    hits, patches = (sums_by_case(values, index, cases) for values in (level * right[:, None], level))

    def balanced(drawn: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.asarray((drawn @ hits / (drawn @ patches)).mean(axis=1))

    recall = hits.sum(axis=0) / patches.sum(axis=0)
    return Predictability(
        float(recall.mean()),
        1 / len(names),
        interval_by_case(cases, balanced, seed),
        {name: float(value) for name, value in zip(names, recall, strict=True)},
        len(x),
        cases,
        folds,
    )


def _check_folds(folds: int, cases: list[tuple[str, int]]) -> None:
    if folds < 2:
        raise UsageError(f"{folds} folds", "at least 2")
    few = [f"{name}: {count} cases" for name, count in cases if count < folds]
    if few:
        smallest = min(count for _, count in cases)
        fix = f"folds={smallest}" if smallest > 1 else "leave levels of a single case out"
        raise DataError(f"{folds} folds need as many cases of each level", fix, few)
