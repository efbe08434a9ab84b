"""Training sets in which label and scanner go together more and more, and test sets in which they do not.

Four cells: two classes from two scanners. Cases are dealt to training, validation and test; then half ± s units of each
cell make a training block, s from 0 to half: 2 × 2 tables of one size whose Cramér's V is s / half.
Source: Kömen et al., arXiv 2507.17845; blocks by case, patches as units where cases run out: our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from midog.errors import DataError, UsageError, unknown
from midog.metrics import case_index
from midog.robustness.inputs import Ints, levels

TRAIN, VALIDATION, TEST, NONE = 0, 1, 2, -1
DEALT = (TRAIN, VALIDATION, TEST, TRAIN, VALIDATION)
"""The order in which cases are dealt: two fifths, two fifths, one fifth (our choice)."""


@dataclass(frozen=True)
class Design:
    """Who may be drawn: `target` (n,) 0 or 1 of `classes`, `domain` (n,) number of the scanner, `cell` (n,) 0…3 inside
    the two classes and scanners, -1 elsewhere, `case` (n,) numbers, `by_case` whether whole cases are shifted, and
    `outside` (n,) bool: one of the two classes, another scanner."""

    classes: tuple[str, str]
    domains: tuple[str, str]
    target: Ints
    domain: Ints
    cell: Ints
    case: Ints
    by_case: bool
    outside: np.ndarray
    splits: int
    most: int


@dataclass(frozen=True)
class Drawn:
    """One shuffle: rows of the training and validation block of each split, of both tests, and the shifts s of half."""

    train: tuple[Ints, ...]
    validation: tuple[Ints, ...]
    in_domain: Ints
    out_of_domain: Ints
    shifts: Ints
    half: int


def make_design(
    label: ArrayLike,
    confounder: ArrayLike,
    group: ArrayLike,
    classes: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    splits: int = 5,
    most: int = 100,
) -> Design:
    """The cells of two classes and two domains; by default those whose smallest cell holds the most patches.

    Whole cases are shifted where each lies in one cell and each cell has enough, else patches.

    Raises: UsageError for unknown classes or domains; DataError where every choice leaves a cell empty.
    """
    n = len(np.asarray(label))
    y, class_names = levels(label, "label", n)
    c, domain_names = levels(confounder, "confounder", n)
    case, cases = case_index(group)
    if len(case) != n:
        raise DataError(f"{len(case)} cases for {n} labels")
    counts = np.zeros((len(class_names), len(domain_names)), dtype=np.int64)
    np.add.at(counts, (y, c), 1)
    choices = [
        (int(counts[np.ix_(pair, place)].min()), pair, place)
        for pair in _pairs("class", class_names, classes)
        for place in _pairs("domain", domain_names, domains)
    ]
    size, pair, place = max(choices, key=lambda choice: choice[0])
    if not size:
        raise DataError("no two domains hold two classes each", "add patches, or choose another confounder")
    inside = np.isin(y, pair) & np.isin(c, place)
    target = (y == pair[1]).astype(np.int64)
    cell = np.where(inside, 2 * target + (c == place[1]), NONE)
    held = _held(cell, case, cases)
    pure = bool((held.sum(axis=1) <= 1).all())
    enough = int(held.sum(axis=0).min()) * 2 // len(DEALT) // 2 >= splits - 1
    return Design(
        (class_names[pair[0]], class_names[pair[1]]),
        (domain_names[place[0]], domain_names[place[1]]),
        target,
        c,
        cell,
        case,
        pure and enough,
        np.isin(y, pair) & ~np.isin(c, place),
        splits,
        most,
    )


def draw_splits(design: Design, rng: np.random.Generator) -> Drawn:
    """Deal the cases, and make every split from the same shuffle: a larger shift only swaps units.

    Patches of other scanners are tested only where their case was not trained on.

    Raises: DataError where a cell has too few units for that many splits, or the test lacks a class.
    """
    block = _deal(design, rng)[design.case]
    unit = design.case if design.by_case else np.arange(len(design.cell))
    cells = {
        part: [rng.permutation(np.unique(unit[(design.cell == cell) & (block == part)])) for cell in range(4)]
        for part in (TRAIN, VALIDATION)
    }
    half = min(design.most, *(len(units) // 2 for part in cells.values() for units in part))
    if half < design.splits - 1:
        raise DataError(
            f"{design.splits} splits need {2 * design.splits - 2} {'cases' if design.by_case else 'patches'} of each "
            f"class from each domain in training, and some cell has at most {2 * half + 1}",
            f"fewer splits, or other domains than {' and '.join(design.domains)}",
        )
    shifts = np.rint(np.linspace(0, half, design.splits)).astype(np.int64)
    test = np.flatnonzero((design.cell >= 0) & (block == TEST))
    if len(np.unique(design.target[test])) < 2:
        raise DataError("the cases dealt to the test lack a class", "add cases")
    rows = {
        part: tuple(_rows(unit, _take(cells[part], half, int(shift)), design.cell >= 0) for shift in shifts)
        for part in cells
    }
    outside = np.flatnonzero(design.outside & ((block == NONE) | (block == TEST)))
    return Drawn(rows[TRAIN], rows[VALIDATION], test, outside, shifts, half)


def _pairs(what: str, names: list[str], chosen: Sequence[str] | None) -> list[tuple[int, int]]:
    if chosen is None:
        return list(combinations(range(len(names)), 2))
    for name in chosen:
        if name not in names:
            raise unknown(what, str(name), names)
    if len(set(chosen)) != 2:
        raise UsageError(f"{what}es {list(chosen)}" if what == "class" else f"{what}s {list(chosen)}", "name two")
    return [(names.index(chosen[0]), names.index(chosen[1]))]


def _held(cell: Ints, case: Ints, cases: int) -> np.ndarray:
    """(cases, 4) bool: the cells in which each case has patches."""
    held = np.zeros((cases, 4), dtype=bool)
    held[case[cell >= 0], cell[cell >= 0]] = True
    return held


def _deal(design: Design, rng: np.random.Generator) -> Ints:
    """(cases,) block of each case, NONE without a patch inside. Cases alike in what they hold are dealt in turn."""
    held = _held(design.cell, design.case, int(design.case.max()) + 1)
    kind = held @ (1 << np.arange(4))
    order = rng.permutation(np.flatnonzero(kind))
    order = order[np.argsort(kind[order], kind="stable")]
    block = np.full(len(kind), NONE, dtype=np.int64)
    block[order] = np.asarray(DEALT)[np.arange(len(order)) % len(DEALT)]
    return block


def _take(cells: list[Ints], half: int, shift: int) -> Ints:
    """half − s units of class 0 in the second domain and of class 1 in the first, half + s of the other two."""
    sizes = (half + shift, half - shift, half - shift, half + shift)
    return np.concatenate([units[:size] for units, size in zip(cells, sizes, strict=True)])


def _rows(unit: Ints, chosen: Ints, inside: np.ndarray) -> Ints:
    return np.flatnonzero(np.isin(unit, chosen) & inside)
