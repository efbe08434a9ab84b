"""Do clusters of features follow the label, or the scanner?

In every 2 × 2 table of two labels and two scanners features are clustered by k-means. The score is the clusters'
agreement with the label minus that with the scanner (adjusted Rand indices): 1 the label alone, −1 the scanner alone.
Source: Kömen et al., arXiv 2507.17845; equal cells, their limit and the interval are our choice.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from midog.errors import DataError
from midog.metrics import Interval, case_index
from midog.progress import track
from midog.robustness.inputs import Floats, Ints, interval_by_case, levels, sums_by_case, unit_rows
from midog.robustness.paired import pairs_of

SEED = 1337
CLUSTERS = tuple(range(2, 31))
LIMIT = 250
"""Patches drawn from each cell at most: the silhouette needs all their distances."""


@dataclass(frozen=True)
class ClusteringCard:
    """`score` is the mean over tables of ARI(label) − ARI(confounder), `interval` its 95 % case bootstrap with the
    clusters as they are; `label` and `confounder` the two means, `clusters` the k chosen in each table."""

    score: float
    label: float
    confounder: float
    interval: Interval | None
    clusters: dict[str, int]
    left_out: tuple[str, ...]
    n: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**asdict(self), "left_out": list(self.left_out)}


def clustering_score(features: ArrayLike, label: ArrayLike, confounder: ArrayLike, seed: int = SEED) -> float:
    """The score alone, from all patches of every 2 × 2 table; see `clustering_card`."""
    n = len(np.asarray(features))
    return clustering_card(features, label, confounder, np.arange(n), limit=None, seed=seed).score


def clustering_card(
    features: ArrayLike,
    label: ArrayLike,
    confounder: ArrayLike,
    group: ArrayLike,
    clusters: Sequence[int] = CLUSTERS,
    starts: int = 20,
    runs: int = 50,
    limit: int | None = LIMIT,
    seed: int = SEED,
) -> ClusteringCard:
    """Cluster every 2 × 2 table and compare.

    Args:
        features: (n, d) finite; rows are brought to length 1.
        label, confounder: (n,) words; a table with an empty cell is left out and named.
        group: (n,) case of each patch, for the interval.
        clusters: numbers of clusters to try; the best cosine silhouette of k-means with `starts` random starts wins.
        runs: clusterings with that number, each the best of five starts, that are averaged.
        limit: patches drawn from each cell at most, as many from each; None takes all patches.

    Raises: DataError where no table is whole, or features cannot be used.
    """
    x = unit_rows(features)
    y, label_names = levels(label, "label", len(x))
    c, confounder_names = levels(confounder, "confounder", len(x))
    index, cases = case_index(group)
    if len(index) != len(x):
        raise DataError(f"{len(index)} cases for {len(x)} feature vectors")
    tables: dict[str, Ints] = {}
    left_out = []
    for number, (name, cells) in enumerate(pairs_of(y, label_names, c, confounder_names)):
        size = min(len(cell) for cell in cells)
        if not size or sum(map(len, cells)) <= min(clusters):
            left_out.append(f"{name}: a cell is empty")
            continue
        if limit is not None:
            rng, size = np.random.default_rng((seed, number)), min(size, limit)
            cells = [rng.choice(cell, size, replace=False) for cell in cells]
        tables[name] = np.sort(np.concatenate(cells))
    if not tables:
        raise DataError("no two labels occur together in two domains", "add patches", left_out)
    chosen, counts = {}, []
    for name, rows in track(tables.items(), "clustering", len(tables)):
        chosen[name] = _best_number(x[rows], clusters, starts, seed)
        for run in range(runs):
            found = _cluster(x[rows], chosen[name], 5, seed + run)
            counts.append(tuple(_joint(found, words[rows], index[rows]) for words in (y, c)))
    by_table = (len(tables), runs)

    def score(drawn: Floats) -> tuple[Floats, Floats]:
        found = [[_rand(joint.drawn(drawn)) for joint in pair] for pair in counts]
        values = np.asarray(found).transpose(1, 2, 0).reshape(2, len(drawn), *by_table).mean(axis=-1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a draw that leaves every table undefined
            return np.nanmean(values[0], axis=-1), np.nanmean(values[1], axis=-1)

    def difference(drawn: Floats) -> Floats:
        of_label, of_confounder = score(drawn)
        return np.asarray(of_label - of_confounder)

    of_label, of_confounder = (float(value[0]) for value in score(np.ones((1, cases))))
    interval = interval_by_case(cases, difference)
    n = len(np.unique(np.concatenate(list(tables.values()))))
    return ClusteringCard(of_label - of_confounder, of_label, of_confounder, interval, chosen, tuple(left_out), n)


def _best_number(x: Floats, clusters: Sequence[int], starts: int, seed: int) -> int:
    """The number of clusters with the best cosine silhouette, the smallest of equals; 2 where none can be judged."""
    from sklearn.metrics import silhouette_score

    best, chosen = -np.inf, min(clusters)
    for number in clusters:
        if number >= len(x):
            break
        found = _cluster(x, number, starts, seed)
        if 1 < len(np.unique(found)) < len(x):
            value = float(silhouette_score(x, found, metric="cosine"))
            if value > best:
                best, chosen = value, number
    return chosen


def _cluster(x: Floats, number: int, starts: int, seed: int) -> Ints:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct vectors than clusters
        found = KMeans(number, init="random", n_init=starts, random_state=seed).fit_predict(x)
    return np.asarray(found, dtype=np.int64)


@dataclass(frozen=True)
class _Joint:
    """`counts` (c, clusters, 2): patches of each of `cases` (c,) in each cluster, by level."""

    cases: Ints
    counts: Floats

    def drawn(self, drawn: Floats) -> Floats:
        """(draws, clusters, 2) patches of the cases drawn."""
        flat = drawn[:, self.cases] @ self.counts.reshape(len(self.cases), -1)
        return flat.reshape(len(drawn), *self.counts.shape[1:])


def _joint(found: Ints, words: Ints, index: Ints) -> _Joint:
    level = np.unique(words, return_inverse=True)[1]
    present, at = np.unique(index, return_inverse=True)
    cells = np.zeros((len(found), int(found.max()) + 1, 2))
    cells[np.arange(len(found)), found, level] = 1
    return _Joint(present, sums_by_case(cells, at, len(present)))


def _rand(table: Floats) -> Floats:
    """Adjusted Rand index of each of (b, rows, columns) tables of counts; NaN where both partitions are trivial.

    Source: Hubert & Arabie 1985, Comparing partitions.
    """

    def pairs(counts: Floats) -> Floats:
        return counts * (counts - 1) / 2

    both = pairs(table).sum(axis=(1, 2))
    rows, columns = pairs(table.sum(axis=2)).sum(axis=1), pairs(table.sum(axis=1)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = rows * columns / pairs(table.sum(axis=(1, 2)))
        return np.asarray((both - expected) / ((rows + columns) / 2 - expected))
