"""Scored patches: truth beside prediction. The table that a blend leaves behind and that `compare` reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from midog.data.patches import Patch, PatchTable, parse_label, read_table
from midog.errors import DataError, unknown
from midog.files import read_csv, write_csv

GROUPS = ("domain", "tumour", "scanner", "laboratory")
HEADER = ("patch_id", "logit", "confidence", "class")
TRUTH = ("label", "case", *GROUPS)
FOLD = "fold"
CLASSES = ("normal", "atypical")
EVERYTHING = "all"
UNKNOWN = "(unknown)"


@dataclass(frozen=True)
class Scored:
    """Predictions and truth: `logit` (n,) before calibration, `confidence` (n,) P(atypical), `predicted` (n,) bool.

    `folds` (n,), where the predictions are out of fold: the fold model that made each.
    """

    name: str
    table: PatchTable
    logit: NDArray[np.float64]
    confidence: NDArray[np.float64]
    predicted: NDArray[np.bool_]
    folds: NDArray[np.int32] | None = None

    def groups(self, by: str) -> NDArray[np.object_]:
        return group_words(self.table, by)


def group_words(table: PatchTable, by: str) -> NDArray[np.object_]:
    """(n,) the group of each patch. Raises: UsageError for anything but domain, tumour, scanner or laboratory."""
    if by not in GROUPS:
        raise unknown("group", by, GROUPS)
    words = table.column(by)
    return np.where(words == "", UNKNOWN, words)


def write_scored(path: Path, scored: Scored) -> Path:
    """Write `patch_id,logit,confidence,class`, then label, case, domain, tumour, scanner, laboratory, and fold."""
    columns = [
        scored.table.ids,
        scored.logit.tolist(),
        scored.confidence.tolist(),
        [CLASSES[int(flag)] for flag in scored.predicted],
        *(scored.table.column(name) for name in TRUTH),
        [""] * len(scored.table) if scored.folds is None else scored.folds.tolist(),
    ]
    return write_csv(path, (*HEADER, *TRUTH, FOLD), zip(*columns, strict=True))


def read_scored(path: Path | str, truth: Path | str | None = None) -> Scored:
    """Read a prediction table; its truth is the patch table `truth`, else its own columns where it has them.

    Patches of `truth` without a label are left out; every other patch needs a prediction.

    Raises: DataError listing every row that cannot be used.
    """
    path = Path(path)
    header, rows = read_csv(path)
    lacking = [name for name in HEADER if name not in header]
    if lacking:
        raise DataError(
            f"{path} is no prediction table: no column {', '.join(lacking)}", "`midog predict` writes such a table"
        )
    if truth is None and "label" not in header:
        raise DataError(f"{path} does not say what is true", "add --truth patches.csv, a patch table with labels")
    found, problems = _parse(header, rows)
    table = _own_truth(path, header, rows) if truth is None else _labelled(read_table(truth))
    absent = [patch_id for patch_id in table.ids if patch_id not in found]
    problems += [f"{patch_id}: no prediction" for patch_id in absent]
    if problems:
        raise DataError(f"{path} cannot be scored", "repeat `midog predict` on all patches of the truth", problems)
    values = [found[patch_id] for patch_id in table.ids]
    logit, confidence, predicted = (np.array(column) for column in zip(*values, strict=True))
    folds = table.folds if truth is None and (table.folds >= 0).all() else None
    return Scored(str(path), table, logit, confidence, predicted.astype(np.bool_), folds)


def _parse(header: list[str], rows: list[list[str]]) -> tuple[dict[str, tuple[float, float, bool]], list[str]]:
    at = [header.index(name) for name in HEADER]
    found: dict[str, tuple[float, float, bool]] = {}
    problems: list[str] = []
    for number, row in enumerate(rows, 2):
        patch_id, *numbers, word = (row[column] for column in at)
        try:
            logit, confidence = map(float, numbers)
        except ValueError:
            logit = confidence = math.nan
        if not (math.isfinite(logit) and 0 <= confidence <= 1):
            problems.append(f"row {number}: {patch_id}: logit {numbers[0]!r}, confidence {numbers[1]!r}")
        elif word not in CLASSES:
            problems.append(f"row {number}: {patch_id}: class {word!r} is neither atypical nor normal")
        elif patch_id in found:
            problems.append(f"row {number}: {patch_id} again")
        found[patch_id] = (logit, confidence, word == CLASSES[1])
    return found, problems


def _labelled(table: PatchTable) -> PatchTable:
    table = table.subset(table.labels >= 0)
    if not len(table):
        raise DataError("no patch of the truth has a label")
    return table


def _own_truth(path: Path, header: list[str], rows: list[list[str]]) -> PatchTable:
    patches = []
    for number, row in enumerate(rows, 2):
        cells = dict(zip(header, row, strict=True))
        try:
            label = parse_label(cells["label"])
        except ValueError as error:
            raise DataError(f"{path} row {number}: {error}") from None
        fold = cells.get(FOLD, "")
        truth = Patch(cells["patch_id"], cells["patch_id"], label, fold=int(fold) if fold.isdigit() else None)
        case, domain, tumour, scanner, laboratory = (cells.get(name, "") for name in TRUTH[1:])
        patches.append(replace(truth, case=case, domain=domain, tumour=tumour, scanner=scanner, laboratory=laboratory))
    return _labelled(PatchTable(tuple(patches), path.absolute().parent))
