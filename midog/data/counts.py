"""How many patches, cases and labels: in all, by domain, by fold; and the tables that show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from midog.data.patches import ATYPICAL, NORMAL, Patch, PatchTable, cell_text


@dataclass(frozen=True, slots=True)
class Count:
    """How many patches and cases one group has; `group` holds one word per column counted by."""

    group: tuple[str, ...]
    patches: int
    cases: int
    atypical: int
    normal: int
    unlabelled: int


def count_by(table: PatchTable, *columns: str) -> tuple[Count, ...]:
    """Counts per combination of the columns' values, sorted (fold 10 after fold 9); no column: one count."""
    groups: dict[tuple[str, ...], list[Patch]] = {}
    for patch in table:
        groups.setdefault(tuple(cell_text(patch, name) for name in columns), []).append(patch)

    def order(group: tuple[str, ...]) -> list[tuple[int, str]]:
        return [(int(word) if word.isdigit() else -1, word) for word in group]

    return tuple(
        Count(
            group,
            len(members),
            len({p.case for p in members}),
            sum(p.label == ATYPICAL for p in members),
            sum(p.label == NORMAL for p in members),
            sum(p.label is None for p in members),
        )
        for group, members in sorted(groups.items(), key=lambda item: order(item[0]))
    )


def class_words(count: Count) -> str:
    words = f"{count.atypical} atypical, {count.normal} normal"
    return f"{words}, {count.unlabelled} unlabelled" if count.unlabelled else words


def count_table(columns: Sequence[str], counts: Sequence[Count]) -> list[str]:
    header = (*columns, "cases", "atypical", "normal")
    rows = [(*(w or "–" for w in c.group), str(c.cases), str(c.atypical), str(c.normal)) for c in counts]
    return _aligned([header, *rows], len(columns))


def fold_table(counts: Sequence[Count]) -> list[str]:
    """One row a domain, one column a fold: atypical/normal."""
    places = list(dict.fromkeys(f"fold {c.group[2]}" if c.group[2] else c.group[1] for c in counts))
    places.sort(key=lambda word: (not word.startswith("fold"), len(word), word))
    cells: dict[str, dict[str, str]] = {}
    for c in counts:
        place = f"fold {c.group[2]}" if c.group[2] else c.group[1]
        cells.setdefault(c.group[0] or "–", {})[place] = f"{c.atypical}/{c.normal}"
    rows = [(domain, *(found.get(place, "0/0") for place in places)) for domain, found in cells.items()]
    return _aligned([("atypical/normal", *places), *rows], 1)


def _aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns of equal width, the first `left` of them flush left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            w.ljust(n) if i < left else w.rjust(n) for i, (w, n) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
