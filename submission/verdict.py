"""One line of a check-list: what was asked, what came out. A skip never counts as a pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["pass", "fail", "warn", "skip", "info"]


@dataclass(frozen=True)
class Verdict:
    """`line` is the check-list's own (A6, B3, D12); `detail` holds the reason or the measurement."""

    line: str
    what: str
    status: Status
    detail: str = ""

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def passed(line: str, what: str, good: bool, detail: str = "") -> Verdict:
    """pass or fail."""
    return Verdict(line, what, "pass" if good else "fail", detail)


def failures(verdicts: Iterable[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if verdict.status == "fail"]


def verdict_table(verdicts: Iterable[Verdict]) -> str:
    """One line per verdict, then the counts of each status."""
    rows = list(verdicts)
    width = max((len(row.what) for row in rows), default=0)
    lines = [f"{row.line:<4} {row.status:<5} {row.what:<{width}}  {row.detail}".rstrip() for row in rows]
    counts = {status: sum(row.status == status for row in rows) for status in ("pass", "fail", "warn", "skip")}
    return "\n".join([*lines, ", ".join(f"{n} {status}" for status, n in counts.items() if n)])
