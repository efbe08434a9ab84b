"""Tables as plain text, for the terminal and the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as aligned text: words to the left, numbers to the right, `–` for None.

    Floats are shown with three decimals; a pair of floats is an interval, shown as `.812–.871`, or
    as `-.378 to .132` where a dash would be read as a minus.
    """
    if not rows:
        return "(nothing to show)"
    header = list(rows[0])
    cells = [[cell_text(row.get(key)) for key in header] for row in rows]
    right = [all(isinstance(row.get(key), int | float | tuple | None) for row in rows) for key in header]
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]

    def aligned(line: Sequence[str]) -> str:
        columns = (text.rjust(w) if r else text.ljust(w) for text, w, r in zip(line, widths, right, strict=True))
        return "  ".join(columns).rstrip()

    return "\n".join([aligned(header), aligned(["-" * width for width in widths]), *map(aligned, cells)])


def cell_text(value: Any) -> str:
    """One value as a table shows it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}".replace("0.", ".", 1) if -1 < value < 1 else f"{value:.3f}"
    if isinstance(value, tuple):
        between = " to " if any(isinstance(part, float) and part < 0 for part in value) else "–"
        return between.join(cell_text(part) for part in value)
    return str(value)
