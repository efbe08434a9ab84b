"""How much does a probe lose when label and scanner go together in its training?

A logistic regression is trained on frozen features of two classes from two scanners, first unbiased, then until each
class comes from one scanner alone (`biased_splits`), and tested on other cases of the same scanners and on other
scanners. What it loses relative to the unbiased training, on average, is the average performance drop.

Source: Kömen et al., arXiv 2507.17845; scores averaged over cells and the interval are our choice.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from midog.errors import DataError, UsageError
from midog.metrics import Interval
from midog.progress import steps
from midog.robustness.biased_splits import Design, draw_splits, make_design
from midog.robustness.inputs import Floats, Ints, checked_features, interval_by_case, sums_by_case

STRENGTHS = tuple(float(strength) for strength in 10 ** np.linspace(-8, 4, 15))
"""Values of scikit-learn's C among which the validation block chooses. Source: Kömen et al.'s published code."""


@dataclass(frozen=True)
class Protocol:
    """`splits` degrees of bias from none to full, `repeats` shuffles of the cases, `strengths` the C to choose from, at
    most `most` units (cases or patches) for half a training cell. Repeats and C as published, the others our choice."""

    splits: int = 5
    repeats: int = 20
    strengths: tuple[float, ...] = STRENGTHS
    most: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.splits < 2 or self.repeats < 1 or not self.strengths or self.most < self.splits - 1:
            raise UsageError(f"{self} cannot be carried out", "splits from 2, repeats from 1, most from splits − 1")


@dataclass(frozen=True)
class Drop:
    """`average_performance_drop` below 0 is a loss, `interval` its 95 % case bootstrap over the tested cases alone, and
    `accuracies` (splits, repeats) the mean over classes of the mean recall over scanners."""

    average_performance_drop: float
    interval: Interval | None
    accuracies: Floats = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "average_performance_drop": self.average_performance_drop,
            "interval": self.interval.to_dict() if self.interval else None,
            "accuracy": [float(value) for value in self.accuracies.mean(axis=1)],
        }


@dataclass(frozen=True)
class PerformanceDrop:
    """What the protocol gave. `unit` is case or patch, `half` the smallest number of them in half a training cell,
    `cramers_v` the bias of each split, `out_of_domain` None where no other scanner has both classes."""

    classes: tuple[str, str]
    domains: tuple[str, str]
    unit: str
    half: int
    cramers_v: tuple[float, ...]
    in_domain: Drop
    out_of_domain: Drop | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "classes": list(self.classes),
            "domains": list(self.domains),
            "unit": self.unit,
            "half": self.half,
            "cramers_v": list(self.cramers_v),
            "in_domain": self.in_domain.to_dict(),
            "out_of_domain": self.out_of_domain.to_dict() if self.out_of_domain else None,
        }


def average_performance_drop(accuracies: ArrayLike) -> float:
    """Mean over repeats of the mean over splits s ≥ 1 of acc_s / acc_0, minus 1: 0 no loss, negative a loss.

    Args:
        accuracies: (splits, repeats), row 0 from unbiased training.

    Raises: DataError for fewer than two splits, values that are not finite, or unbiased accuracies not above 0.
    """
    values = np.asarray(accuracies, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 2 or not values.shape[1]:
        raise DataError(f"accuracies are {values.shape}: (splits, repeats) with at least two splits are needed")
    if not np.isfinite(values).all() or (values[0] <= 0).any():
        raise DataError("accuracies must be finite, and those of the unbiased training above 0")
    return float((values[1:] / values[0]).mean() - 1)


def cramers_v(counts: ArrayLike) -> float:
    """Cramér's V of a table of counts (rows, columns), 0 to 1. Source: Cramér 1946, Mathematical Methods of Statistics.

    Raises: DataError where fewer than two rows or columns hold anything: association needs two levels of each.
    """
    from scipy.stats.contingency import association

    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or not np.isfinite(table).all() or (table < 0).any():
        raise DataError(f"{table.tolist()} is no table of counts")
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    if min(table.shape) < 2:
        raise DataError("Cramér's V needs two levels of each variable", "add rows of another level")
    return float(association(table.astype(np.int64), method="cramer"))


def performance_drop(
    features: ArrayLike,
    label: ArrayLike,
    confounder: ArrayLike,
    group: ArrayLike,
    classes: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    protocol: Protocol = Protocol(),
) -> PerformanceDrop:
    """The whole protocol on a table of features.

    Args:
        features: (n, d) finite, taken as they are: scikit-learn's defaults, no scaling.
        label, confounder, group: (n,) words; no case is in two of training, validation and test.
        classes, domains: two of each; by default those whose smallest cell holds the most patches.

    Raises: DataError where a cell has too few units for that many splits; UsageError for unknown classes or domains.
    """
    x = checked_features(features)
    design = make_design(label, confounder, group, classes, domains, protocol.splits, protocol.most)
    if len(design.cell) != len(x):
        raise DataError(f"{len(design.cell)} labels for {len(x)} feature vectors")
    inside, outside, bias, halves = [], [], [], []
    with steps("biased training", protocol.repeats) as step:
        for repeat in range(protocol.repeats):
            drawn = draw_splits(design, np.random.default_rng((protocol.seed, repeat)))
            probes = [
                _probe(x, design.target, train, validation, protocol.strengths)
                for train, validation in zip(drawn.train, drawn.validation, strict=True)
            ]
            inside.append(_counts(x, design, drawn.in_domain, probes))
            outside.append(_counts(x, design, drawn.out_of_domain, probes))
            half = drawn.half
            bias.append([cramers_v([[half + s, half - s], [half - s, half + s]]) for s in drawn.shifts])
            halves.append(half)
            step("")
    in_domain = _drop(np.stack(inside, axis=1))
    if in_domain is None:  # draw_splits has seen to it
        raise DataError("the cases dealt to the test lack a class", "add cases")
    return PerformanceDrop(
        design.classes,
        design.domains,
        "case" if design.by_case else "patch",
        min(halves),
        tuple(float(v) for v in np.mean(bias, axis=0)),
        in_domain,
        _drop(np.stack(outside, axis=1)),
    )


def _probe(x: Floats, target: Ints, train: Ints, validation: Ints, strengths: Sequence[float]) -> Any:
    """The regression with the first C that has the best balanced accuracy on the validation block."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    best, chosen = -1.0, None
    with warnings.catch_warnings():
        # The published protocol stops at scikit-learn's 100 iterations, and so does this one.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in strengths:
            probe = LogisticRegression(C=strength).fit(x[train], target[train])
            value = float(balanced_accuracy_score(target[validation], probe.predict(x[validation])))
            if value > best:
                best, chosen = value, probe
    return chosen


def _counts(x: Floats, design: Design, rows: Ints, probes: Sequence[Any]) -> Floats:
    """(splits, 2, cases, 2 classes, domains): right answers, and patches, by case and cell."""
    target, domain = design.target[rows], design.domain[rows]
    cell = np.zeros((len(rows), 2, int(design.domain.max()) + 1))
    cell[np.arange(len(rows)), target, domain] = 1
    cases = int(design.case.max()) + 1
    patches = sums_by_case(cell, design.case[rows], cases)
    result = []
    for probe in probes:
        right = (probe.predict(x[rows]) == target) if len(rows) else np.zeros(0)
        result.append(np.stack((sums_by_case(cell * right[:, None, None], design.case[rows], cases), patches)))
    return np.stack(result)


def _drop(counts: Floats) -> Drop | None:
    """From (splits, repeats, 2, cases, 2, domains); None where a class is missing in some test."""
    cases = counts.shape[3]
    accuracies = _accuracies(counts, np.ones((1, cases)))[0]
    if not np.isfinite(accuracies).all():
        return None

    def drops(drawn: Floats) -> Floats:
        values = _accuracies(counts, drawn)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = (values[:, 1:] / values[:, :1]).mean(axis=1)
        ratio[~np.isfinite(ratio)] = np.nan
        with warnings.catch_warnings():
            # A draw may leave a class out of one shuffle's few test cases; the other shuffles still count.
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.asarray(np.nanmean(ratio, axis=1) - 1)

    return Drop(average_performance_drop(accuracies), interval_by_case(cases, drops), accuracies)


def _accuracies(counts: Floats, drawn: Floats) -> Floats:
    """(draws, splits, repeats): mean over classes of the mean recall over the scanners that hold the class."""
    sums = np.einsum("bc,srkcyd->bsrkyd", drawn, counts, optimize=True)
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(sums[:, :, :, 0] / sums[:, :, :, 1], axis=-1).mean(axis=-1))
