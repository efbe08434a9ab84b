"""An error is a problem plus a fix. Every exception a user can meet is one of these."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

SHOWN_DETAILS = 12


class MidogError(Exception):
    """A problem, optional detail lines, and the fix to type.

    `kind` opens the message and `exit_code` is what the command line returns.
    """

    kind = "problem"
    exit_code = 1

    def __init__(self, problem: str, fix: str = "", details: Sequence[str] = ()) -> None:
        self.problem = problem
        self.fix = fix
        self.details = tuple(details)
        super().__init__(self.render())

    def render(self) -> str:
        lines = [f"{self.kind}: {self.problem}"]
        lines += [f"  {detail}" for detail in self.details[:SHOWN_DETAILS]]
        if len(self.details) > SHOWN_DETAILS:
            lines.append(f"  … and {len(self.details) - SHOWN_DETAILS} more")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class CheckFailed(MidogError):
    """A check ran to its end and found problems in what it was asked to check."""

    kind = "check"
    exit_code = 1


class UsageError(MidogError):
    """A command, option or recipe that cannot be carried out as written."""

    kind = "usage"
    exit_code = 2


class ArgumentError(UsageError, ValueError):
    """A function was called with a value outside its range; also a ValueError, for callers that know no other."""


class DataError(MidogError):
    """Patches, tables or folders that are not what they should be."""

    kind = "data"
    exit_code = 3


class LeakError(DataError):
    """The same case, or the same pixels, on both sides of a split."""

    kind = "leak"


class WeightsError(MidogError):
    """Pretrained weights or a checkpoint: missing, foreign, damaged or of another shape."""

    kind = "weights"
    exit_code = 4


class ContractError(MidogError):
    """The challenge's input/output contract, or a bundle, is broken."""

    kind = "contract"
    exit_code = 5


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The valid name most like `name`, or None when nothing is close."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return found[0] if found else None


def unknown(what: str, name: str, names: Iterable[str]) -> UsageError:
    """UsageError for a name that is not one of `names`, with the nearest one as the fix."""
    names = sorted(names)
    guess = nearest(name, names)
    fix = f"did you mean {guess}?" if guess else f"choose one of: {', '.join(names)}"
    return UsageError(f"unknown {what}: {name}", fix)
