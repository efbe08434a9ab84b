"""The robustness index by default: two scanners and two labels at a time, all four cells of equal size.

On an unbalanced table the index of mere noise can be .9. So each pair of confounder levels and of labels becomes a
balanced 2 × 2 table, drawn several times, and neighbours are counted over all of them; chance is then a half, or what
the cases' own patches, which are no neighbours, make of it: the exact value is beside it. Source: our choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from midog.errors import DataError
from midog.metrics import case_index
from midog.robustness.inputs import Ints, levels, unit_rows
from midog.robustness.neighbours import neighbours, shortest_list
from midog.robustness.pathorob import KS, K, RobustnessCard, Tally, count_neighbours

REPEATS = 5


@dataclass(frozen=True)
class PairedRobustness:
    """Cards over all pairs. `card` is the one at the k asked for, `curve` those of every k that all pairs allow.

    Their counts and `n` hold a patch as often as it was drawn. `pairs` names the pairs that were counted, `left_out`
    the others with the reason.
    """

    card: RobustnessCard
    curve: tuple[RobustnessCard, ...]
    pairs: tuple[str, ...]
    left_out: tuple[str, ...]
    repeats: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            **self.card.to_dict(),
            "curve": [card.to_dict() for card in self.curve],
            "pairs": list(self.pairs),
            "left_out": list(self.left_out),
            "repeats": self.repeats,
        }


@dataclass(frozen=True)
class PairCounts:
    """What `PairedRobustness` is made of: neighbours counted at `ks` over the draws of all `pairs`, by case."""

    tally: Tally
    ks: tuple[int, ...]
    pairs: tuple[str, ...]
    left_out: tuple[str, ...]


def paired_robustness(
    features: ArrayLike,
    label: ArrayLike,
    confounder: ArrayLike,
    group: ArrayLike,
    k: int = K,
    repeats: int = REPEATS,
    seed: int = 0,
) -> PairedRobustness:
    """The robustness index, pooled over balanced 2 × 2 tables.

    Args:
        features, label, confounder, group: as `pathorob.robustness_index` takes them.
        k: neighbours. A pair in which some patch has fewer candidates is left out, and so is one with an empty cell.
        repeats: draws of each pair.

    Raises: DataError where no pair is left, with the reason for each.
    """
    found = count_pairs(features, label, confounder, group, k, repeats, seed)
    curve = found.tally.cards(found.ks, seed)
    return PairedRobustness(curve[found.ks.index(k)], curve, found.pairs, found.left_out, repeats)


def count_pairs(
    features: ArrayLike, label: ArrayLike, confounder: ArrayLike, group: ArrayLike, k: int, repeats: int, seed: int
) -> PairCounts:
    """The counts of `paired_robustness`, with its arguments. What is drawn depends on the table and the seed alone, so
    that two feature spaces of the same patches are counted on the same draws."""
    x = unit_rows(features)
    label_codes, label_names = levels(label, "label", len(x))
    confounder_codes, confounder_names = levels(confounder, "confounder", len(x))
    index, cases = case_index(group)
    if len(index) != len(x):
        raise DataError(f"{len(index)} cases for {len(x)} feature vectors")
    draws: dict[str, list[Ints]] = {}
    left_out = []
    longest = len(x)
    for number, (name, cells) in enumerate(pairs_of(label_codes, label_names, confounder_codes, confounder_names)):
        size = min(len(cell) for cell in cells)
        if not size:
            left_out.append(f"{name}: a cell is empty")
            continue
        rng = np.random.default_rng((seed, number))
        drawn = [
            np.sort(np.concatenate([rng.choice(cell, size, replace=False) for cell in cells])) for _ in range(repeats)
        ]
        found = min(shortest_list(index[rows]) for rows in drawn)
        if found < k:
            left_out.append(f"{name}: some patch has only {found} patches of other cases")
            continue
        longest = min(longest, found)
        draws[name] = drawn
    if not draws:
        raise DataError(f"no pair can be compared at k = {k}", "a smaller k, or more cases", left_out)
    ks = tuple(sorted({k, *(other for other in KS if other <= longest)}))
    total: Tally | None = None
    for drawn in draws.values():
        for rows in drawn:
            near = neighbours(x[rows], index[rows], max(ks))
            part = count_neighbours(near, label_codes[rows], confounder_codes[rows], index[rows], cases, ks)
            total = part if total is None else total + part
    assert total is not None
    return PairCounts(total, ks, tuple(draws), tuple(left_out))


def pairs_of(
    label: Ints, label_names: list[str], confounder: Ints, confounder_names: list[str]
) -> Iterator[tuple[str, list[Ints]]]:
    """Every pair of labels in every pair of confounder levels: its name and the rows of its four cells."""
    for one, other in combinations(range(len(confounder_names)), 2):
        for a, b in combinations(range(len(label_names)), 2):
            cells = [np.flatnonzero((label == y) & (confounder == c)) for c in (one, other) for y in (a, b)]
            yield f"{label_names[a]}, {label_names[b]} in {confounder_names[one]}, {confounder_names[other]}", cells
