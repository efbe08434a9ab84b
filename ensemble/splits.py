"""Parts of the cases for cross-fitting: whole cases, balanced on label, the same for the same seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.errors import DataError
from midog.metrics import case_index

PARTS = 5


def case_parts(case: ArrayLike, label: ArrayLike, parts: int = PARTS, seed: int = 0) -> NDArray[np.int64]:
    """The part (0…parts - 1) of each patch, (n,); patches of a case are in one part.

    Greedy: the largest cases first, each into the part that has least of what the case brings (share of all
    atypical plus share of all normal patches); equal cases in an order drawn from `seed`. With fewer cases than
    parts there are as many parts as cases (our choice).

    Raises: DataError when a class would be absent from what remains without one of the parts.
    """
    index, cases = case_index(case)
    y = np.asarray(label).astype(bool)
    counts = np.stack([np.bincount(index, ~y, cases), np.bincount(index, y, cases)], axis=1)
    share = counts / np.maximum(counts.sum(axis=0), 1)
    parts = min(parts, cases)
    shuffled = np.random.default_rng([seed, cases]).permutation(cases)
    order = shuffled[np.argsort(-share[shuffled].sum(axis=1), kind="stable")]
    filled = np.zeros((parts, 2))
    place = np.empty(cases, dtype=np.int64)
    for number in order:
        # Σ (fill + new)² over parts grows least where fill · new is least: fill what the case has most of.
        part = int(np.lexsort((filled.sum(axis=1), filled @ share[number]))[0])
        place[number] = part
        filled[part] += share[number]
    _need_both_classes(place[index], y, cases)
    return place[index]


def _need_both_classes(part: NDArray[np.int64], y: NDArray[np.bool_], cases: int) -> None:
    for number in np.unique(part):
        rest = y[part != number]
        if not rest.any() or rest.all():
            absent = "normal" if rest.any() else "atypical"
            raise DataError(
                f"too few cases to cross-fit: without one part of the {cases} cases no {absent} patch is left",
                "each class must occur in at least two cases",
            )
