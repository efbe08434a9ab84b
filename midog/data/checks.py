"""Everything that can be wrong with patches, reported at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from midog.data import folds
from midog.data.counts import Count, class_words, count_by, count_table, fold_table
from midog.data.duplicates import duplicates, join
from midog.data.patches import PatchTable, Problem
from midog.data.pixels import PATCH, Scan, scan_images
from midog.errors import CheckFailed, DataError, LeakError, MidogError

FAULTS = {
    "missing": ("{n} images are missing", "put them where the rows say, or delete these rows"),
    "unreadable": ("{n} images cannot be read", "copy or download these files again, or delete their rows"),
    "mode": ("{n} images are not 8-bit RGB", "convert them to 8-bit RGB, or delete their rows"),
    "size": (f"{{n}} images are not {PATCH} × {PATCH} pixels", f"cut them to {PATCH} px (32 µm at 0.25 µm/px)"),
}


@dataclass(frozen=True)
class Checked:
    """A table after its check. problems: must be solved before anything is trained; notes: worth knowing."""

    table: PatchTable
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]

    @property
    def counts(self) -> dict[str, tuple[Count, ...]]:
        """Counts of the whole table and by domain, split, fold, and fold within domain."""
        columns = {
            "all": (),
            "domain": ("domain",),
            "split": ("split",),
            "fold": ("split", "fold"),
            "domain_fold": ("domain", "split", "fold"),
        }
        return {name: count_by(self.table, *by) for name, by in columns.items()}

    def with_table(self, table: PatchTable) -> Checked:
        """The same findings about a table whose folds, splits or rows were chosen since."""
        return replace(self, table=table)

    def require(self) -> None:
        """Raises: LeakError, DataError or CheckFailed with every problem at once; nothing when there is none."""
        error = self.error()
        if error is not None:
            raise error

    def error(self) -> MidogError | None:
        """All problems as one error, None when there is none."""
        if not self.problems:
            return None
        kinds = {problem.kind for problem in self.problems}
        made: type[MidogError] = LeakError if "leak" in kinds else DataError if "data" in kinds else CheckFailed
        if len(self.problems) == 1:
            return made(self.problems[0].problem, self.problems[0].fix, self.problems[0].details)
        lines = [f"{problem.problem} (fix: {problem.fix})" for problem in self.problems]
        return made(f"{len(self.problems)} kinds of problem in the data", "midog check DATA… lists them all", lines)

    def write(self, path: Path | str) -> Path:
        """Write the patch table. Raises: what `require` does, and then writes nothing."""
        self.require()
        return self.table.write(path)

    def summary(self) -> dict[str, Any]:
        """The check as a JSON-able object."""

        def plain(problem: Problem) -> dict[str, Any]:
            return {"kind": problem.kind, "problem": problem.problem, "fix": problem.fix, "details": [*problem.details]}

        def rows(counts: Sequence[Count]) -> list[dict[str, Any]]:
            names = ("patches", "cases", "atypical", "normal", "unlabelled")
            return [{"group": [*c.group], **{name: getattr(c, name) for name in names}} for c in counts]

        return {
            "problems": [plain(problem) for problem in self.problems],
            "notes": [plain(note) for note in self.notes],
            "counts": {name: rows(counts) for name, counts in self.counts.items()},
        }

    def text(self) -> str:
        """What a user reads: counts, then notes, then problems with their fixes."""
        counts = self.counts
        total = counts["all"][0] if counts["all"] else Count((), 0, 0, 0, 0, 0)
        lines = [f"{total.patches} patches of {total.cases} cases: {class_words(total)}", ""]
        lines += count_table(("domain",), counts["domain"])
        if (self.table.folds >= 0).any() or len(counts["split"]) > 1:
            lines += ["", *count_table(("split", "fold"), counts["fold"]), "", *fold_table(counts["domain_fold"])]
        for finding in (*self.notes, *self.problems):
            lines += ["", finding.render()]
        return "\n".join(lines)


def check(table: PatchTable, cache: Path | None = None, join_duplicates: bool = False) -> Checked:
    """Look at every row and every image and report everything at once. Decodes the images into the pixel cache.

    join_duplicates: of rows with the same pixels keep the first (the first table's), with the others' ids as aliases
    and their votes merged; cases that share pixels become one. Without it the same pixels twice are a problem.
    Raises: nothing for bad data; MidogError when the cache cannot be written.
    """
    scan = scan_images(table, cache)
    findings = [*table.findings, *_faults(table, scan)]
    if join_duplicates:
        table, kept, told = join(table, scan.hashes)
        scan = replace(scan, hashes=tuple(scan.hashes[i] for i in kept), padded=scan.padded[kept])
        findings += told
    else:
        findings += duplicates(table, scan.hashes)
    findings += _repeated_ids(table)
    findings += _overlaps(table, scan)
    findings += _split_cases(table)
    findings += _lacking_folds(table)
    findings += _worth_knowing(table, scan)
    return Checked(
        replace(table, findings=()),
        tuple(finding for finding in findings if finding.fatal),
        tuple(finding for finding in findings if not finding.fatal),
    )


def _faults(table: PatchTable, scan: Scan) -> list[Problem]:
    lines: dict[str, list[str]] = {}
    for fault in scan.faults:
        lines.setdefault(fault.kind, []).append(f"{table.origin(fault.index)}: {fault.text}")
    return [
        Problem(kind, FAULTS[kind][0].format(n=len(lines[kind])), FAULTS[kind][1], tuple(lines[kind]))
        for kind in FAULTS
        if kind in lines
    ]


def _repeated_ids(table: PatchTable) -> list[Problem]:
    twice = [name for name, n in Counter(table.ids).items() if n > 1]
    if not twice:
        return []
    return [Problem("data", f"{len(twice)} patch ids appear more than once", "name each table once", tuple(twice))]


def _overlaps(table: PatchTable, scan: Scan) -> list[Problem]:
    """Patches of one slide that show some of the same tissue: within a case a note, across cases a leak."""
    slides: dict[str, list[int]] = {}
    for i, origin in enumerate(table.origins):
        if origin.slide and origin.x is not None and origin.y is not None:
            slides.setdefault(origin.slide, []).append(i)
    within: list[str] = []
    across: list[str] = []
    for rows in slides.values():
        place = np.array([(table.origins[i].x, table.origins[i].y) for i in rows])
        close = (np.abs(place[:, None] - place[None]) < PATCH).all(axis=2)
        for a, b in zip(*np.nonzero(np.triu(close, 1)), strict=True):
            one, two = table.patches[rows[a]], table.patches[rows[b]]
            if scan.hashes[rows[a]] == scan.hashes[rows[b]] != "":
                continue  # told as a duplicate
            (within if one.case == two.case else across).append(f"{one.patch_id} and {two.patch_id}")
    problems = []
    if across:
        text = f"{len(across)} pairs of patches overlap on a slide but belong to different cases"
        problems.append(Problem("leak", text, "give the patches of one slide one case", tuple(across)))
    if within:
        text = (
            f"{len(within)} pairs of patches overlap inside one case: a split by patch would leak, folds by case do not"
        )
        problems.append(Problem("overlap", text, "", tuple(within[:3]), fatal=False))
    return problems


def _split_cases(table: PatchTable) -> list[Problem]:
    bad = folds.split_cases(table)
    if not bad:
        return []
    text = f"{len(bad)} cases are in more than one fold or split"
    fix = "correct the columns split and fold, or delete the column fold to have it made anew"
    return [Problem("leak", text, fix, bad)]


def _lacking_folds(table: PatchTable) -> list[Problem]:
    lacking = folds.lacking_folds(table)
    if not lacking:
        return []
    fix = "correct the column fold, or have it made anew: midog check DATA… --folds grouped:5:0"
    return [Problem("data", "a class is absent from a fold: nothing can be scored there", fix, lacking)]


def _worth_knowing(table: PatchTable, scan: Scan) -> list[Problem]:
    notes = []
    if scan.padded.any():
        text = f"{int(scan.padded.sum())} patches lie at a slide border and are padded with black"
        notes.append(Problem("padding", text, fatal=False))
    unlabelled = int((table.labels < 0).sum())
    if unlabelled:
        notes.append(
            Problem("label", f"{unlabelled} patches have no label: good for predict, not for train", fatal=False)
        )
    present = {int(label) for label in table.labels} - {-1}
    if len(present) == 1:
        word = "atypical" if present == {1} else "normal"
        notes.append(Problem("label", f"every label is {word}: folds need both classes", fatal=False))
    return notes
