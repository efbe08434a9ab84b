"""The same pixels under several names: found, refused, or joined into one patch with aliases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from midog.data.patches import Patch, PatchTable, Problem, parse_votes
from midog.errors import LeakError

JOIN_FIX = "midog check DATA… --join-duplicates -o patches.csv"


def equal_pixels(hashes: Sequence[str]) -> list[list[int]]:
    """Positions of patches with the same pixels, two or more, in the table's order."""
    groups: dict[str, list[int]] = {}
    for i, digest in enumerate(hashes):
        if digest:
            groups.setdefault(digest, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def duplicates(table: PatchTable, hashes: Sequence[str]) -> list[Problem]:
    """The same pixels under several names, and which of them have two labels. `hashes`: row by row, "" unreadable."""
    groups = equal_pixels(hashes)
    if not groups:
        return []
    problems = [_leak(table, groups)]
    contrary = [group for group in groups if _contrary([table.patches[i] for i in group])]
    if contrary:
        text = f"{len(contrary)} images have contradictory labels: the same pixels, another label"
        lines = tuple(" but ".join(_with_label(table, i) for i in group) for group in contrary)
        fix = f"delete the wrong rows, or keep the first of each: {JOIN_FIX}"
        problems.append(Problem("contradiction", text, fix, lines))
    return problems


def refuse_duplicates(table: PatchTable, hashes: Sequence[str], used: npt.NDArray[np.bool_]) -> None:
    """What a check refuses, for a table that may never have seen one.

    used: (n,) bool, the patches to train on. Two others may be equal: nothing is learned from either.
    Raises: LeakError when a used patch has the pixels of another row.
    """
    groups = [group for group in equal_pixels(hashes) if used[group].any()]
    if groups:
        leak = _leak(table, groups)
        raise LeakError(leak.problem, leak.fix, leak.details)


def _leak(table: PatchTable, groups: Sequence[Sequence[int]]) -> Problem:
    """Which, in which data sets, whether under two cases; and the split, where a group is in both."""
    found = [[table.patches[i] for i in group] for group in groups]
    sets = Counter(" and ".join(sorted({_dataset(p) for p in group})) for group in found)
    where = "; ".join(f"{n} in {names}" for names, n in sets.items())
    across = sum(len({p.case for p in group}) > 1 for group in found)
    text = f"{len(groups)} images appear under more than one name ({where})"
    text += f", {across} of them under more than one case" if across else ""
    return Problem("leak", text, JOIN_FIX, tuple(" = ".join(_names(group)) for group in found))


def _names(group: Sequence[Patch]) -> list[str]:
    torn = len({p.split for p in group}) > 1
    return [f"{p.patch_id} ({p.split})" if torn else p.patch_id for p in group]


def _contrary(patches: Sequence[Patch]) -> bool:
    return len({patch.label for patch in patches} - {None}) > 1


def _dataset(patch: Patch) -> str:
    return patch.patch_id.split("/")[0] if "/" in patch.patch_id else "one table"


def _with_label(table: PatchTable, index: int) -> str:
    patch = table.patches[index]
    word = {1: "atypical", 0: "normal"}.get(-1 if patch.label is None else patch.label, "unlabelled")
    return f"{patch.patch_id} ({table.origin(index)}) {word}"


def join(table: PatchTable, hashes: Sequence[str]) -> tuple[PatchTable, list[int], list[Problem]]:
    """Keep the first of the rows with the same pixels: (joined table, positions kept, what to tell)."""
    groups = equal_pixels(hashes)
    if not groups:
        return table, list(range(len(table))), []
    patches = list(table.patches)
    dropped: set[int] = set()
    contrary: list[str] = []
    torn: list[str] = []
    for group in groups:
        members = [table.patches[i] for i in group]
        if _contrary(members):
            contrary.append(" but ".join(_with_label(table, i) for i in group))
        if len({p.split for p in members}) > 1:
            torn.append(" = ".join(_names(members)))
        names = dict.fromkeys(name for p in members for name in (p.patch_id, *p.aliases) if name != members[0].patch_id)
        votes = _merge_votes([p.votes for p in members])
        label = next((p.label for p in members if p.label is not None), None)
        patches[group[0]] = replace(members[0], label=label, aliases=tuple(names), votes=votes)
        dropped.update(group[1:])
    same = _merged_cases([[table.patches[i].case for i in group] for group in groups])
    kept = [i for i in range(len(table)) if i not in dropped]
    whole = table.with_patches(replace(p, case=same.get(p.case, p.case)) for p in patches)
    told = [Problem("join", f"{len(dropped)} rows joined to a row with the same pixels, as its aliases", fatal=False)]
    if same:
        lines = tuple(f"{one} is now part of {other}" for one, other in same.items())
        told.append(Problem("join", f"{len(same)} cases share pixels with another case and join it", "", lines, False))
    if contrary:
        text = f"{len(contrary)} joined images had contradictory labels; the first row's is kept, all votes count"
        told.append(Problem("contradiction", text, "", tuple(contrary), False))
    if torn:
        text = f"{len(torn)} images are in train under one name and in test under another"
        told.append(Problem("leak", text, "delete the rows on one side", tuple(torn)))
    return whole.subset(kept), kept, told


def _merge_votes(votes: Sequence[str]) -> str:
    """Votes of one image from several tables: equal ones are the same votes told twice, others are added."""
    tallies = [tally for word in dict.fromkeys(votes) if (tally := parse_votes(word)) is not None]
    if not tallies:
        return ""
    return f"{sum(tally[0] for tally in tallies)}/{sum(tally[1] for tally in tallies)}"


def _merged_cases(groups: Sequence[Sequence[str]]) -> dict[str, str]:
    """Case → the case it joins, for cases that are linked by shared pixels, over any number of steps."""
    head: dict[str, str] = {}

    def top(case: str) -> str:
        while case in head:
            case = head[case]
        return case

    for cases in groups:
        for case in cases[1:]:
            one, other = top(cases[0]), top(case)
            if one != other:
                head[other] = one
    return {case: top(case) for case in head}
