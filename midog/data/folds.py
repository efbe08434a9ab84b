"""Folds by case: made once for all recipes, extended, held out, and turned into what a member leaves out.

How cases are spread is arithmetic of our own (`spread.py`). `amibr` repeats published folds, and so uses the library
that made them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from midog import errors
from midog.data.patches import Patch, PatchTable
from midog.data.pixels import scan_images
from midog.data.spread import spread
from midog.errors import DataError, LeakError, UsageError

LEAVE_OUT = ("scanner", "tumour", "domain", "laboratory", "species")
"""Columns whose values can be left out one at a time."""
Place = tuple[str, int | None]
"""Split and fold."""
SPEC_FIX = "write grouped:FOLDS:SEED, like grouped:5:0, or amibr"


@dataclass(frozen=True)
class Assignment:
    """index: (n,) int32, position in `names` of the fold that leaves each patch out, -1 not used (split test).

    names: "0", "1", … for folds; the values of the column for leave-one-out.
    """

    index: npt.NDArray[np.int32]
    names: tuple[str, ...]


def make_folds(table: PatchTable, spec: str = "grouped:5:0") -> PatchTable:
    """The table with a fold for every `train` patch.

    spec: "grouped:FOLDS:SEED" by case, balanced on label within domain; "amibr" the published five of AMi-Br
    (Banerjee et al. 2025, arXiv:2506.21444: scikit-learn's StratifiedGroupKFold, shuffled with seed 42, by slide).
    Raises: UsageError for another spec; DataError when there are fewer cases than folds, or of a class;
    LeakError when a case is in train and test. A table without train patches, or without any label, needs no classes.
    """
    table = without_folds(table)
    refuse_split_cases(table)
    if spec == "amibr":
        return _amibr_folds(table)
    kind, *numbers = spec.split(":")
    if kind != "grouped" or not 1 <= len(numbers) <= 2 or not all(n.isdigit() for n in numbers):
        raise UsageError(f"unknown folds: {spec}", SPEC_FIX)
    count, seed = int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else 0
    if count < 2:
        raise UsageError(f"{spec}: at least two folds are needed", SPEC_FIX)
    cases = _cases(table, lambda patch: patch.split == "train")
    if not cases:
        return table
    _need_cases(table, cases, count)
    place = spread(table, cases, np.full(count, 1 / count), seed)
    return _with_folds(table, place)


def without_folds(table: PatchTable) -> PatchTable:
    """The table with its column fold empty."""
    return table.with_patches(replace(patch, fold=None) for patch in table)


def hold_out(table: PatchTable, share: float, seed: int = 0) -> PatchTable:
    """Set about `share` of the train patches aside as split `test`, by case, balanced on label within domain.

    Raises: UsageError for a share outside (0, 1), or when the table has a test split already (published splits are
    kept); DataError when the cases are too few for both classes on both sides.
    """
    if not 0 < share < 1:
        raise UsageError(f"hold-out of {share:g}: a share between 0 and 1 is needed", "write --hold-out 0.2")
    held = sum(patch.split == "test" for patch in table)
    if held:
        raise UsageError(
            f"the table already has {held} test patches", "leave out --hold-out: a published split is kept"
        )
    cases = _cases(table)
    _need_cases(table, cases, 2)
    place = spread(table, cases, np.array([1 - share, share]), seed)
    result = table.with_patches(replace(p, split="test", fold=None) if place[p.case] else p for p in table)
    for split in ("train", "test"):
        _need_classes(f"split {split}", [p.label for p in result if p.split == split])
    return result


def extend(table: PatchTable, old: PatchTable, cache: Path | None = None) -> PatchTable:
    """Folds of `old` for its cases, and places for the new ones beside them.

    Every case of `old` keeps its split and its fold, also where it has another name by now: a case is known by its
    name, and by the ids, aliases and pixels of its patches. New cases keep their split (a published one); those in
    train go where they balance best.

    cache: folder of the pixel store. Images of `old` that are no longer there are known by their names alone.
    Raises: LeakError when a case of `old` is in two folds or splits, or when a case of the table has patches from two
    of these; DataError when `old` has no folds.
    """
    refuse_split_cases(old)
    names = sorted({patch.fold for patch in old if patch.fold is not None})
    if len(names) < 2:
        raise DataError("the old table has no folds to keep", "make them with: midog check … --folds grouped:5:0")
    known = _inherited(table, old, cache)
    position = {fold: i for i, fold in enumerate(names)}
    kept = {case: position[fold] for case, (_, fold) in known.items() if fold is not None}
    new = _cases(table, lambda patch: known.get(patch.case, (patch.split, None)) == ("train", None))
    place = {case: names[i] for case, i in spread(table, new, np.full(len(names), 1 / len(names)), 0, kept).items()}

    def placed(patch: Patch) -> Patch:
        split, fold = known.get(patch.case, (patch.split, None))
        return replace(patch, split=split, fold=place[patch.case] if split == "train" and fold is None else fold)

    result = table.with_patches(placed(patch) for patch in table)
    refuse_split_cases(result)
    return result


def _inherited(table: PatchTable, old: PatchTable, cache: Path | None) -> dict[str, Place]:
    """Case of the table → its place in `old`, for those that `old` knows under this name or another.

    Raises: LeakError for a case that `old` has in two places.
    """
    place_of: dict[str, Place] = {p.case: (p.split, p.fold if p.split == "train" else None) for p in old}
    holding: dict[tuple[str, str], set[str]] = {}
    for patch, digest in zip(old, scan_images(old, cache).hashes, strict=True):
        for key in _signs(patch, digest):
            holding.setdefault(key, set()).add(patch.case)
    was: dict[str, set[str]] = {case: {case} for case in table.column("case") if case in place_of}
    for patch, digest in zip(table, scan_images(table, cache).hashes, strict=True):
        for key in _signs(patch, digest) & holding.keys():
            was.setdefault(patch.case, set()).update(holding[key])
    found: dict[str, Place] = {}
    torn: list[str] = []
    for case, cases in was.items():
        # A train case without a fold has no place yet: it goes where the others are.
        places = {place_of[name] for name in cases} - {("train", None)} or {("train", None)}
        found[case] = next(iter(places))
        if len(places) > 1:
            told = sorted(f"{_where(*place_of[name])} as {name}" for name in cases)
            torn.append(f"case {case or '(empty)'}: {', '.join(told)}")
    if torn:
        raise LeakError(
            f"{len(torn)} cases have patches that the old table has in more than one fold or split",
            "delete the rows that link them, or make all folds anew: "
            "midog check DATA… --join-duplicates --folds grouped:5:0 -o patches.csv",
            torn,
        )
    return found


def _signs(patch: Patch, digest: str) -> set[tuple[str, str]]:
    """What a patch is known by in another table: its names, and its pixels where they can be read."""
    return {("name", name) for name in (patch.patch_id, *patch.aliases)} | ({("pixels", digest)} if digest else set())


def _where(split: str, fold: int | None) -> str:
    return "test" if split == "test" else "train" if fold is None else f"fold {fold}"


def assign(table: PatchTable, column: str) -> Assignment:
    """Which fold model leaves each patch out.

    column: "fold", or scanner, tumour, domain, laboratory, species = leave one value out at a time.
    Raises: UsageError for another column; LeakError when a case is in two folds, or in train and test;
    DataError when a train patch has no fold or value, there are fewer than two, or a class is absent from one.
    """
    if column not in ("fold", *LEAVE_OUT):
        raise errors.unknown("folds", column, ("fold", *LEAVE_OUT))
    refuse_split_cases(table)
    values = [str(value) for value in table.column(column)]
    used = [patch.split == "train" for patch in table]
    empty = [patch.patch_id for patch, value, use in zip(table, values, used, strict=True) if use and not value]
    if empty:
        fix = "midog check PATCHES -o patches.csv makes folds" if column == "fold" else f"fill in the column {column}"
        raise DataError(f"{len(empty)} train patches have no {column}", fix, empty)
    found = {value for value, use in zip(values, used, strict=True) if use}
    names = tuple(sorted(found, key=(lambda v: int(v)) if column == "fold" else None))
    if len(names) < 2:
        raise DataError(f"only {len(names)} {column} in the train patches", "two or more are needed to leave one out")
    _refuse_leaks(table, values, column)
    for name in names:
        labels = [p.label for p, value, use in zip(table, values, used, strict=True) if use and value == name]
        _need_classes(f"{column} {name}", labels)
    position = {name: i for i, name in enumerate(names)}
    index = [position[value] if use else -1 for value, use in zip(values, used, strict=True)]
    return Assignment(np.array(index, dtype=np.int32), names)


def refuse_split_cases(table: PatchTable) -> None:
    """Raises: LeakError naming every case that is in train and in test, or in two folds."""
    bad = split_cases(table)
    if bad:
        raise LeakError(
            f"{len(bad)} cases are in more than one fold or split",
            "correct the columns split and fold, or delete the column fold and run: midog check PATCHES -o patches.csv",
            bad,
        )


def split_cases(table: PatchTable) -> tuple[str, ...]:
    """A line for each case that is in two folds, or in train and test."""
    places: dict[str, set[str]] = {}
    for patch in table:
        places.setdefault(patch.case, set()).add(_where(patch.split, patch.fold))
    return tuple(f"case {case or '(empty)'}: {', '.join(sorted(w))}" for case, w in places.items() if len(w) > 1)


def lacking_folds(table: PatchTable) -> tuple[str, ...]:
    """A line for each fold without a label of one class; none where nothing is labelled."""
    found: dict[int, set[int | None]] = {}
    for patch in table:
        if patch.split == "train" and patch.fold is not None:
            found.setdefault(patch.fold, set()).add(patch.label)
    if not any(labels - {None} for labels in found.values()):
        return ()
    words = ((1, "atypical"), (0, "normal"))
    return tuple(f"fold {k}: no {word} patch" for k in sorted(found) for label, word in words if label not in found[k])


def _refuse_leaks(table: PatchTable, values: Sequence[str], column: str) -> None:
    places: dict[str, set[str]] = {}
    for patch, value in zip(table, values, strict=True):
        if patch.split == "train":
            places.setdefault(patch.case, set()).add(value)
    bad = [f"case {case}: {', '.join(sorted(found))}" for case, found in places.items() if len(found) > 1]
    if bad:
        raise LeakError(f"{len(bad)} cases are in more than one {column}", f"give each case one {column}", bad)


def _need_classes(where: str, labels: Sequence[int | None]) -> None:
    if None in labels:
        raise DataError(f"{where}: {labels.count(None)} patches have no label", "label them, or delete their rows")
    for label, word in ((1, "atypical"), (0, "normal")):
        if label not in labels:
            raise DataError(f"{where} has no {word} patch", "use fewer folds, another seed, or more cases")


def _need_cases(table: PatchTable, cases: Sequence[str], count: int) -> None:
    chosen = set(cases)
    if len(cases) < count:
        raise DataError(f"{len(cases)} cases for {count} folds", "use fewer folds: a case is never split")
    if not any(patch.label is not None for patch in table if patch.case in chosen):
        return
    for label, word in ((1, "atypical"), (0, "normal")):
        holding = {patch.case for patch in table if patch.label == label and patch.case in chosen}
        if len(holding) < count:
            raise DataError(
                f"only {len(holding)} cases have a patch that is {word}, for {count} folds: a fold would have none",
                "use fewer folds, or add cases",
            )


def _cases(table: PatchTable, wanted: Callable[[Patch], bool] = lambda patch: True) -> list[str]:
    """Sorted names of the cases of the wanted patches: independent of the table's order."""
    cases = sorted({patch.case for patch in table if wanted(patch)})
    if "" in cases:
        raise DataError("patches without a case", "fill in the column case: slide or patient")
    return cases


def _with_folds(table: PatchTable, place: dict[str, int]) -> PatchTable:
    return table.with_patches(replace(p, fold=place[p.case] if p.split == "train" else None) for p in table)


def _amibr_folds(table: PatchTable) -> PatchTable:
    from sklearn.model_selection import StratifiedGroupKFold

    foreign = [patch.patch_id for patch in table if not patch.patch_id.startswith("AMi-Br/")]
    if foreign:
        raise DataError(
            f"{len(foreign)} patches are not AMi-Br's: its published folds do not cover them", SPEC_FIX, foreign
        )
    rows = [i for i, patch in enumerate(table) if patch.split == "train"]
    labels = np.array([table.patches[i].label for i in rows])
    slides = np.array([_amibr_slide(table.patches[i].case) for i in rows])
    _need_cases(table, sorted({table.patches[i].case for i in rows}), 5)
    place: dict[str, int] = {}
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=42)
    for fold, (_, held) in enumerate(splitter.split(np.zeros(len(rows)), labels, slides)):
        place.update({table.patches[rows[i]].case: fold for i in held})
    return _with_folds(table, place)


def _amibr_slide(case: str) -> str:
    """The slide's file name in AMi-Br: the library shuffles slides in the order of these names."""
    dataset, _, number = case.partition("/")
    if dataset == "MIDOG21":
        return f"{number}.tiff"
    return f"{number}_stitched1.tif" if int(number) <= 23 else f"{number}.tif"
