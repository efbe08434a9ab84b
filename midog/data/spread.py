"""Cases over places: plain arithmetic on counts, which serves folds, hold-out and extension alike.

A greedy assignment of our own, largest case first, to the place whose counts stay closest to its share, then moves and
swaps as long as they help; what is counted is the label within the domain, so that the rare figures of small domains
are spread too. The same seed gives the same places with every version of every library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from midog.data.patches import PatchTable

MAX_SWEEPS = 20
Floats = npt.NDArray[np.float64]


def spread(
    table: PatchTable, cases: Sequence[str], shares: Floats, seed: int, kept: dict[str, int] | None = None
) -> dict[str, int]:
    """Place of each case: largest first, to where all counts come closest to `shares`; then moves and swaps that help.

    What is kept level: label within domain, label, patches, cases, each relative to its total, so that the few
    atypical figures of a small domain weigh as much as the many normal ones of a large one.
    """
    kept = kept or {}
    counts, weights = _cell_counts(table, [*cases, *kept])
    relative = np.sqrt(weights) * counts / counts.sum(axis=0)
    aim = np.sqrt(weights) * shares[:, None]
    order = np.random.default_rng(seed).permutation(len(cases))
    order = order[np.argsort(-counts[order, -2], kind="stable")]
    level = np.zeros_like(aim)
    for row, place in enumerate(kept.values(), len(cases)):
        level[place] += relative[row]
    places = np.zeros(len(cases), dtype=int)
    for row in order:
        cost = (relative[row] * (2 * (level - aim) + relative[row])).sum(axis=1) / shares
        places[row] = np.argmin(cost.round(12))  # rounded: a tie is a tie on every machine
        level[places[row]] += relative[row]
    _improve(relative[: len(cases)], level, aim, shares, places, order)
    return {case: int(place) for case, place in zip(cases, places, strict=True)}


def _improve(
    relative: Floats, level: Floats, aim: Floats, shares: Floats, places: npt.NDArray[Any], order: Any
) -> None:
    """Move a case, or swap two, as long as that brings the counts closer to their aim. Changes `places` and `level`."""
    count = len(shares)
    for _ in range(MAX_SWEEPS):
        changed = False
        for row in order:
            home = places[row]
            # One candidate a place (the case moves there alone), then one a case (the two change places).
            change = np.vstack([np.zeros((count, relative.shape[1])), relative]) - relative[row]
            to = np.concatenate([np.arange(count), places])
            gain = (change * (2 * (level[home] - aim[home]) + change)).sum(axis=1) / shares[home]
            gain += (-change * (2 * (level[to] - aim[to]) - change)).sum(axis=1) / shares[to]
            best = int(np.argmin(np.where(to == home, 0.0, gain).round(12)))
            if to[best] == home or gain[best] > -1e-9:
                continue
            changed = True
            level[home] += change[best]
            level[to[best]] -= change[best]
            places[row] = to[best]
            if best >= count:
                places[best - count] = home
        if not changed:
            return


def _cell_counts(table: PatchTable, cases: Sequence[str]) -> tuple[Floats, Floats]:
    """(cases, cells) counts and (cells,) weights; the last two cells are patches and cases. No cell is empty.

    A label, and the number of patches, weigh as much as the same label in all domains together.
    """
    row = {case: i for i, case in enumerate(cases)}
    members = [(row[patch.case], patch.domain, str(patch.label)) for patch in table if patch.case in row]
    within = sorted({(domain, label) for _, domain, label in members})
    overall = sorted({label for _, label in within})
    column: dict[object, int] = {cell: i for i, cell in enumerate([*within, *overall])}
    counts = np.zeros((len(cases), len(column) + 2))
    for case, domain, label in members:
        counts[case, [column[domain, label], column[label], len(column)]] += 1
    counts[:, -1] = 1
    heavy = len(within) / len(overall) if overall else 1.0
    return counts, np.array([1.0] * len(within) + [heavy] * len(overall) + [heavy, 1.0])
