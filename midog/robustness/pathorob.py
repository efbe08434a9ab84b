"""The robustness index of PathoROB: are a patch's neighbours alike in biology, or in scanner?

Of the k nearest patches of other cases, those of the same label and another scanner (SO) speak for biology, those of
another label and the same scanner (OS) for the scanner; the others say nothing. The index is SO / (SO + OS), pooled: 1
is biology alone, 0 the scanner alone. What chance gives depends on the table's counts, can be far above a half, and
stands beside every index. A higher index is not a better classifier, and ours do not compare with published ones.

Source: Kömen et al., arXiv 2507.17845, for the index; chance level, support and intervals are our choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.errors import DataError, UsageError
from midog.metrics import REPLICATES, Interval, case_index, draw_cases, percentile_interval
from midog.robustness.inputs import Floats, Ints, levels, sums_by_case
from midog.robustness.neighbours import neighbours, shortest_list

K = 11
"""The paper's k on its smallest data set, and our default."""
KS = (1, 3, 5, 7, 9, 11, 21, 31, 51, 101, 201)
"""The curve's k (our choice); those above the shortest list of candidates are left out."""


@dataclass(frozen=True)
class RobustnessCard:
    """A robustness index with what is needed to read it.

    `robustness_index` and `chance` are None where no neighbour, or no candidate, is SO or OS. `so` and `os` count
    neighbours of that kind, `support` is the share of the n patches that have at least one, `interval` the 95 % case
    bootstrap: cases are drawn as those who ask; whom they may find stays the same.
    """

    k: int
    robustness_index: float | None
    chance: float | None
    so: int
    os: int
    support: float
    n: int
    interval: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Tally:
    """Counts that add up over pairs and repeats. `so`, `os` (cases, ks) float64, `supported` (ks,) patches with at
    least one of either, `n` patches, `expected` the chance level's numerator and denominator."""

    so: Floats
    os: Floats
    supported: Ints
    n: int
    expected: tuple[float, float]

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.so + other.so,
            self.os + other.os,
            self.supported + other.supported,
            self.n + other.n,
            (self.expected[0] + other.expected[0], self.expected[1] + other.expected[1]),
        )

    def beside(self, other: Tally) -> Tally:
        """Counts of other cases beside these: of another feature space, whose patches are no neighbours of these."""
        return replace(
            self + replace(other, so=np.zeros_like(self.so), os=np.zeros_like(self.os)),
            so=np.concatenate([self.so, other.so]),
            os=np.concatenate([self.os, other.os]),
        )

    def cards(self, ks: Sequence[int], seed: int = 0) -> tuple[RobustnessCard, ...]:
        """One card for each k; all k share the bootstrap's draws."""
        so, os = self.so.sum(axis=0), self.os.sum(axis=0)
        drawn = draw_cases(len(self.so), REPLICATES, seed) if len(self.so) > 1 else np.zeros((1, len(self.so)))
        with np.errstate(invalid="ignore"):
            spread = drawn @ self.so / (drawn @ (self.so + self.os))
        chance = self.expected[0] / self.expected[1] if self.expected[1] > 0 else None
        return tuple(
            RobustnessCard(
                k=int(k),
                robustness_index=float(so[at] / (so[at] + os[at])) if so[at] + os[at] else None,
                chance=chance,
                so=int(so[at]),
                os=int(os[at]),
                support=float(self.supported[at] / self.n),
                n=self.n,
                interval=percentile_interval(np.asarray(spread[:, at], dtype=np.float64)),
            )
            for at, k in enumerate(ks)
        )


def robustness_index(features: ArrayLike, label: ArrayLike, confounder: ArrayLike, group: ArrayLike, k: int) -> float:
    """The robustness index at k; NaN where no neighbour is SO or OS.

    Args:
        features: (n, d) finite; rows are brought to length 1.
        label: (n,) the biology: atypical or normal, or any classes.
        confounder: (n,) scanner, tumour, laboratory: what should not matter.
        group: (n,) case of each patch, whose own patches are no neighbours; `np.arange(n)` without cases.
        k: neighbours, from 1 to `shortest_list(group)`.

    Raises: DataError for features that are not finite or a label or confounder of one level; UsageError for a k that is
        too large. Source: Kömen et al., arXiv 2507.17845.
    """
    value = robustness_card(features, label, confounder, group, k).robustness_index
    return math.nan if value is None else value


def robustness_card(
    features: ArrayLike, label: ArrayLike, confounder: ArrayLike, group: ArrayLike, k: int = K, seed: int = 0
) -> RobustnessCard:
    """`robustness_index` with its chance level, counts, support and interval; arguments as there."""
    return robustness_curve(features, label, confounder, group, (k,), seed)[0]


def robustness_curve(
    features: ArrayLike,
    label: ArrayLike,
    confounder: ArrayLike,
    group: ArrayLike,
    ks: Sequence[int] | None = None,
    seed: int = 0,
    near: NDArray[np.intp] | None = None,
) -> tuple[RobustnessCard, ...]:
    """A card for each of `ks`, from one neighbour search.

    Args:
        ks: by default those of `KS` up to the shortest list of candidates.
        near: `neighbours(features, group, max(ks))`, where they were found before.
    """
    ks = _fitting(ks, group)
    near = neighbours(features, group, max(ks)) if near is None else near
    index, cases = case_index(group)
    label_codes, _ = levels(label, "label", len(near))
    confounder_codes, _ = levels(confounder, "confounder", len(near))
    return count_neighbours(near, label_codes, confounder_codes, index, cases, ks).cards(ks, seed)


def best_k(
    features: ArrayLike,
    label: ArrayLike,
    group: ArrayLike,
    ks: Sequence[int] | None = None,
    near: NDArray[np.intp] | None = None,
) -> int:
    """The k whose neighbours' vote has the best balanced accuracy, each case left out; the smallest of equals.

    Equal votes go to the label that comes first, as in scikit-learn. Source: Kömen et al.'s published code.
    """
    ks = _fitting(ks, group)
    near = neighbours(features, group, max(ks)) if near is None else near
    codes, names = levels(label, "label", len(near))
    found = codes[near]
    scores = []
    for k in ks:
        votes = np.stack([(found[:, :k] == level).sum(axis=1) for level in range(len(names))], axis=1)
        right = votes.argmax(axis=1) == codes
        scores.append(np.mean([right[codes == level].mean() for level in range(len(names))]))
    return int(ks[int(np.argmax(scores))])


def chance_robustness_index(label: ArrayLike, confounder: ArrayLike, group: ArrayLike | None = None) -> float:
    """The index that features without information have, exactly: it depends on the counts alone, not on k.

    RI_0 = Σ_i so_i/n_i / Σ_i (so_i + os_i)/n_i over the candidates of each patch i; NaN where none is SO or OS.
    Without `group` each patch is a case of its own. Source: our derivation.

    Raises: DataError for a label or confounder of one level, or when all patches belong to one case.
    """
    n = len(np.asarray(label))
    index, cases = case_index(np.arange(n) if group is None else group)
    if len(index) != n:
        raise DataError(f"{len(index)} cases for {n} labels")
    if cases < 2:
        raise DataError("all patches belong to one case: none has a neighbour in another", "add cases")
    so, both = _expected(levels(label, "label", n)[0], levels(confounder, "confounder", n)[0], index)
    return so / both if both else math.nan


def _expected(label: Ints, confounder: Ints, index: Ints) -> tuple[float, float]:
    """Expected share of SO, and of SO or OS, among a patch's candidates, summed over patches."""
    shape = (int(index.max()) + 1, int(label.max()) + 1, int(confounder.max()) + 1)
    own = np.zeros(shape)
    np.add.at(own, (index, label, confounder), 1.0)
    other = own.sum(axis=0) - own
    same_label, same_confounder, candidates = other.sum(axis=2), other.sum(axis=1), other.sum(axis=(1, 2))
    both = other[index, label, confounder]
    so, os = same_label[index, label] - both, same_confounder[index, confounder] - both
    return float((so / candidates[index]).sum()), float(((so + os) / candidates[index]).sum())


def count_neighbours(
    near: NDArray[np.intp], label: Ints, confounder: Ints, index: Ints, cases: int, ks: Sequence[int]
) -> Tally:
    """Counts of one search; `index` numbers the cases, of which there are `cases` in all."""
    if near.shape != (len(label), near.shape[1]) or near.shape[1] < max(ks):
        raise DataError(f"neighbours {near.shape} for {len(label)} patches and k up to {max(ks)}")
    at = np.asarray(ks) - 1
    same_label, same_confounder = label[near] == label[:, None], confounder[near] == confounder[:, None]
    so = (same_label & ~same_confounder).cumsum(axis=1, dtype=np.int64)[:, at]
    os = (~same_label & same_confounder).cumsum(axis=1, dtype=np.int64)[:, at]
    return Tally(
        sums_by_case(so, index, cases),
        sums_by_case(os, index, cases),
        (so + os > 0).sum(axis=0),
        len(label),
        _expected(label, confounder, np.unique(index, return_inverse=True)[1]),
    )


def _fitting(ks: Sequence[int] | None, group: ArrayLike) -> tuple[int, ...]:
    """Those asked for, else those of `KS` that fit."""
    if ks is None:
        longest = shortest_list(group)
        ks = [k for k in KS if k <= longest]
        if not ks:
            raise DataError("all patches belong to one case: none has a neighbour in another", "add cases")
    if not len(ks) or min(ks) < 1:
        raise UsageError(f"k is {list(ks)}", "whole numbers from 1")
    return tuple(int(k) for k in ks)
