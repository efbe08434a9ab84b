"""The patch table: one row per mitotic figure, and the CSV file that holds it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from midog import errors, files
from midog.errors import DataError

ATYPICAL, NORMAL = 1, 0
LABEL_WORDS = {
    "1": 1, "atypical": 1, "amf": 1, "true": 1, "1.0": 1,
    "0": 0, "normal": 0, "nmf": 0, "false": 0, "0.0": 0, "typical": 0,
}  # fmt: skip
"""Words that name a class, in lower case. 1 = atypical is the positive class."""

CORE = ("patch_id", "path", "label", "case", "domain", "split", "fold")
KNOWN = ("tumour", "scanner", "laboratory", "species", "votes", "aliases")
SPLITS = ("train", "test")
HASHED = ("patch_id", "label", "case", "domain", "votes", "split")


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch: a mitotic figure at the centre of `path`.

    label: 1 atypical, 0 normal, None unknown. case: slide or patient, never split between folds.
    votes: "2/3" = atypical votes / votes, "" unknown. aliases: patch ids of the same pixels elsewhere.
    """

    patch_id: str
    path: str
    label: int | None
    case: str = ""
    domain: str = ""
    split: str = "train"
    fold: int | None = None
    tumour: str = ""
    scanner: str = ""
    laboratory: str = ""
    species: str = ""
    votes: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a patch was read: file and row (header = row 1), and its place in pixels on a slide where known."""

    file: str = ""
    row: int = 0
    slide: str = ""
    x: int | None = None
    y: int | None = None

    def __str__(self) -> str:
        return f"{self.file} row {self.row}" if self.row else self.file


@dataclass(frozen=True, slots=True)
class Problem:
    """Something found in the data. `fatal` problems stop a check, the others are notes."""

    kind: str
    problem: str
    fix: str = ""
    details: tuple[str, ...] = ()
    fatal: bool = True

    def render(self) -> str:
        """The text a user sees, in the same form as an error."""
        shown = errors.MidogError(self.problem, self.fix, self.details).render()
        return f"{self.kind if self.fatal else 'note'}{shown.removeprefix(errors.MidogError.kind)}"


@dataclass(frozen=True)
class PatchTable:
    """Patches in order; relative paths start from `root`.

    origins: where each row came from (empty, or one per patch). findings: what reading it brought up.
    Neither is written to the CSV nor counts in a hash.
    """

    patches: tuple[Patch, ...]
    root: Path
    origins: tuple[Origin, ...] = ()
    findings: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.patches)

    def __iter__(self) -> Iterator[Patch]:
        return iter(self.patches)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(patch.patch_id for patch in self.patches)

    @property
    def labels(self) -> npt.NDArray[np.int8]:
        """(n,) int8: 1 atypical, 0 normal, -1 unknown."""
        return np.array([-1 if p.label is None else p.label for p in self.patches], dtype=np.int8)

    @property
    def folds(self) -> npt.NDArray[np.int32]:
        """(n,) int32: fold, -1 where the patch has none (split test)."""
        return np.array([-1 if p.fold is None else p.fold for p in self.patches], dtype=np.int32)

    @property
    def soft_labels(self) -> npt.NDArray[np.float64]:
        """(n,) float64 in [0, 1]: share of atypical votes where votes exist, else the label; NaN unknown."""
        return np.array([_soft_label(patch) for patch in self.patches], dtype=np.float64)

    def column(self, name: str) -> npt.NDArray[np.object_]:
        """(n,) object array of the column's words as the CSV has them.

        Raises: UsageError when there is no such column.
        """
        if name not in (*CORE, *KNOWN):
            raise errors.unknown("column", name, (*CORE, *KNOWN))
        return np.array([cell_text(patch, name) for patch in self.patches], dtype=object)

    def origin(self, index: int) -> Origin:
        """Where patch `index` was read; its row in this table when that is not known."""
        return self.origins[index] if self.origins else Origin("patches.csv", index + 2)

    def subset(self, index: npt.ArrayLike | slice) -> PatchTable:
        """The patches at `index` (integers, in that order, or a boolean mask)."""
        rows = np.arange(len(self))[index if isinstance(index, slice) else np.asarray(index, dtype=_index_dtype(index))]
        return replace(
            self,
            patches=tuple(self.patches[i] for i in rows),
            origins=tuple(self.origins[i] for i in rows) if self.origins else (),
        )

    def with_patches(self, patches: Iterable[Patch]) -> PatchTable:
        """The same rows with other content: as many patches, in the same order."""
        patches = tuple(patches)
        if len(patches) != len(self):
            raise ValueError(f"{len(patches)} patches for a table of {len(self)}")
        return replace(self, patches=patches)

    def file(self, patch: Patch) -> Path:
        """Absolute path of the patch's image."""
        return Path(os.path.normpath(self.root.absolute() / patch.path))

    def write(self, path: Path | str, absolute: bool = False) -> Path:
        """Write the table; image paths relative to its folder, or absolute for a run's copy."""
        path = Path(path)
        start = path.absolute().parent
        known = [name for name in KNOWN if any(getattr(patch, name) for patch in self.patches)]
        header = [*CORE, *known]

        def line(patch: Patch) -> list[str]:
            file = str(self.file(patch))
            place = file if absolute else Path(os.path.relpath(file, start)).as_posix()
            return [place if name == "path" else cell_text(patch, name) for name in header]

        return files.write_csv(path, header, (line(patch) for patch in self.patches))

    @property
    def data_hash(self) -> str:
        """sha256 over what every member's training may depend on besides pixels and folds: the columns `HASHED`.

        What some members use beside them (scanner, tumour, laboratory) is hashed with each of their folds."""
        return files.sha256_json([[cell_text(patch, name) for name in HASHED] for patch in self.patches])

    @property
    def folds_hash(self) -> str:
        """sha256 over ids and folds."""
        return files.sha256_json([[patch.patch_id, cell_text(patch, "fold")] for patch in self.patches])


def parse_label(word: str) -> int | None:
    """1, 0, or None for an empty word; accepts the words of every published layout.

    Raises: ValueError for any other word.
    """
    word = word.strip()
    if not word:
        return None
    try:
        return LABEL_WORDS[word.lower()]
    except KeyError:
        raise ValueError(f"unknown label {word!r}") from None


def parse_votes(word: str) -> tuple[int, int] | None:
    """(atypical votes, votes) of "2/3", None for an empty word.

    Raises: ValueError when it is not of that form, or more atypical votes than votes.
    """
    if not word:
        return None
    parts = word.split("/")
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or not 0 <= int(parts[0]) <= int(parts[1]) > 0:
        raise ValueError(f"unknown votes {word!r}, written as atypical/all, like 2/3")
    return int(parts[0]), int(parts[1])


def read_table(path: Path | str) -> PatchTable:
    """Read a patch table written by `PatchTable.write` (or by hand in the same columns).

    Raises: DataError naming every bad row: unknown label, split, fold or votes, a patch id twice.
    """
    path = Path(path)
    header, rows = files.read_csv(path)
    lacking = [name for name in ("patch_id", "path") if name not in header]
    if lacking:
        raise DataError(
            f"{path} is no patch table: no column {' and '.join(lacking)}; it has {', '.join(header)}",
            f"make one with: midog check {path} -o patches.csv",
        )
    patches: list[Patch] = []
    bad: list[str] = []
    first: dict[str, int] = {}
    for number, row in enumerate(rows, 2):
        try:
            patch = _parse(dict(zip(header, row, strict=True)))
        except ValueError as error:
            bad.append(f"row {number}: {error}")
            continue
        if patch.patch_id in first:
            bad.append(f"row {number}: patch_id {patch.patch_id!r} again (first in row {first[patch.patch_id]})")
        first.setdefault(patch.patch_id, number)
        patches.append(patch)
    if bad:
        raise DataError(f"{path}: {len(bad)} rows cannot be read", "repair these rows", bad)
    origins = tuple(Origin(path.name, number) for number in range(2, len(patches) + 2))
    return PatchTable(tuple(patches), path.absolute().parent, origins)


def _parse(cells: dict[str, str]) -> Patch:
    """A patch from one row. Raises: ValueError saying what is wrong with it."""
    if not cells["patch_id"] or not cells["path"]:
        raise ValueError("empty patch_id or path")
    split = cells.get("split", "") or "train"
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}, the splits are train and test")
    fold = cells.get("fold", "")
    if fold and not fold.isdigit():
        raise ValueError(f"unknown fold {fold!r}, a whole number from 0 or empty")
    votes = cells.get("votes", "")
    parse_votes(votes)
    return Patch(
        patch_id=cells["patch_id"],
        path=cells["path"],
        label=parse_label(cells.get("label", "")),
        case=cells.get("case", ""),
        domain=cells.get("domain", ""),
        split=split,
        fold=int(fold) if fold else None,
        votes=votes,
        aliases=tuple(word for word in cells.get("aliases", "").split(";") if word),
        **{name: cells.get(name, "") for name in ("tumour", "scanner", "laboratory", "species")},
    )


def cell_text(patch: Patch, name: str) -> str:
    value: Any = getattr(patch, name)
    if name == "aliases":
        return ";".join(value)
    return "" if value is None else str(value)


def _soft_label(patch: Patch) -> float:
    votes = parse_votes(patch.votes)
    if votes is not None:
        return votes[0] / votes[1]
    return float("nan") if patch.label is None else float(patch.label)


def _index_dtype(index: npt.ArrayLike) -> npt.DTypeLike:
    """An empty list is an empty selection, though numpy reads it as floats."""
    return bool if np.asarray(index).dtype == bool else np.intp


def concatenate(tables: Sequence[PatchTable]) -> PatchTable:
    """Tables one after the other, under the folder they share. Ids may clash: `checks.check` says so."""
    if len(tables) == 1:
        return tables[0]
    root = Path(os.path.commonpath([table.root.absolute() for table in tables]))
    patches = [
        replace(patch, path=Path(os.path.relpath(table.file(patch), root)).as_posix())
        for table in tables
        for patch in table
    ]
    origins = [table.origin(i) for table in tables for i in range(len(table))]
    return PatchTable(tuple(patches), root, tuple(origins), tuple(f for table in tables for f in table.findings))


assert tuple(field.name for field in fields(Patch)) == (*CORE, *KNOWN)
