"""What a fold folder says about itself while it is being made, and how long the rest will take."""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midog.errors import DataError
from midog.files import read_json

if TYPE_CHECKING:
    from midog.metrics import Interval, Scores


@dataclass(frozen=True)
class FoldStatus:
    """One fold of one member: `state` is done, running, failed, stopped (can be continued) or waiting."""

    member: str
    fold: int
    name: str
    state: str
    epoch: int
    epochs: int
    seconds_left: float | None
    problem: str = ""


@dataclass(frozen=True)
class MemberStatus:
    """A member's folds and the scores of its OOF logits so far (identity view, threshold at logit 0)."""

    name: str
    folds: tuple[FoldStatus, ...]
    scores: Scores | None
    intervals: Mapping[str, Interval]


@dataclass(frozen=True)
class RunStatus:
    """State of a run. `seconds_left` is None while some member has no finished epoch to judge from."""

    path: Path
    members: tuple[MemberStatus, ...]
    seconds_left: float | None

    @property
    def finished(self) -> bool:
        return all(fold.state == "done" for member in self.members for fold in member.folds)


def fold_status(
    folder: Path, member: str, k: int, name: str, epochs: int, log: list[dict[str, Any]], pace: float | None
) -> FoldStatus:
    """State of one fold folder. `log` is its own (`read_log`), `pace` the member's seconds per epoch, None unknown."""
    epoch = int(log[-1]["epoch"]) if log else 0
    problem = ""
    if (folder / "done.json").is_file():
        state, epoch = "done", epochs
    elif locked(folder):
        state = "running"
    elif (folder / "failed.json").is_file():
        state, problem = "failed", str(read_json(folder / "failed.json").get("error", ""))
    else:
        state = "stopped" if (folder / "last.safetensors").is_file() else "waiting"
    own = sum(float(line["seconds"]) for line in log) / len(log) if log else pace
    left = 0.0 if state == "done" else None if own is None else (epochs - epoch) * own
    return FoldStatus(member, k, name, state, epoch, epochs, left, problem)


def seconds_left(members: Sequence[MemberStatus]) -> float | None:
    """Seconds that the folds still need, shared by as many as run now; None where some pace is unknown."""
    folds = [fold for member in members for fold in member.folds]
    if any(fold.seconds_left is None for fold in folds):
        return None
    at_once = max(1, sum(fold.state == "running" for fold in folds))
    return sum(fold.seconds_left or 0.0 for fold in folds) / at_once


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Lines of a fold's log.jsonl, oldest epoch first; empty where there is none."""
    path = folder / "log.jsonl"
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}", f"rm {path}: training does without it") from None


def locked(folder: Path) -> bool:
    """True while some process trains in this fold folder."""
    path = folder / ".lock"
    if not path.is_file():
        return False
    with path.open("r") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def readable_seconds(seconds: float | None) -> str:
    """90 → "1 min 30 s"; None → "unknown"."""
    if seconds is None or not math.isfinite(seconds):
        return "unknown"
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
