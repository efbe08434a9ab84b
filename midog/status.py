"""What a fold folder says about itself while it is being made, what a cluster says, and how long the rest will take."""

from __future__ import annotations

import fcntl
import json
import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midog.errors import DataError
from midog.files import read_json

if TYPE_CHECKING:
    from midog.metrics import Interval, Scores

LOG, START_LOG = "log.jsonl", "start.jsonl"
LAST, START = "last.safetensors", "start.safetensors"
MAPS = "maps.json"
"""What a head makes of patches that it never saw, for the report; only some heads have it."""
CHECKPOINTS = (LAST, START)
"""What a fold folder holds until it is done: of its training, and of the start before it."""


@dataclass(frozen=True)
class FoldStatus:
    """One fold of one member: `state` is done, running, queued, failed, stopped (can be continued) or waiting.

    `epoch` of `epochs` are those of its training, and those of its start while it is `starting`. `by` says which
    process trains it or which job of a cluster will; empty where none does.
    """

    member: str
    fold: int
    name: str
    state: str
    epoch: int
    epochs: int
    seconds_left: float | None
    problem: str = ""
    by: str = ""
    starting: bool = False

    @property
    def progress(self) -> str:
        """How far it is: "3/8", in its start "start 11/40"."""
        return f"{'start ' if self.starting else ''}{self.epoch}/{self.epochs}"


@dataclass(frozen=True)
class Phase:
    """The start or the training of a fold: the epochs that it takes, the seconds of each one that is logged, and the
    member's mean seconds per epoch, None unknown."""

    epochs: int
    seconds: tuple[float, ...]
    pace: float | None

    @property
    def seconds_left(self) -> float | None:
        """What is missing of it, at its own pace where it has one; None unknown."""
        missing = max(0, self.epochs - len(self.seconds))
        pace = _mean(self.seconds) if self.seconds else self.pace
        return 0.0 if not missing else None if pace is None else missing * pace


@dataclass(frozen=True)
class Queued:
    """A fold's SLURM job; `state` is SLURM's word, "" where it lists the job no more, None where it does not answer."""

    job: str
    state: str | None
    reason: str = ""

    def __str__(self) -> str:
        if self.state is None:
            return f"SLURM job {self.job}, squeue does not answer here"
        return f"SLURM job {self.job}" + (f", {self.reason}" if self.state == "PENDING" and self.reason else "")


@dataclass(frozen=True)
class MemberStatus:
    """A member's folds and the scores of its OOF logits so far (identity view, threshold at logit 0)."""

    name: str
    folds: tuple[FoldStatus, ...]
    scores: Scores | None
    intervals: Mapping[str, Interval]


@dataclass(frozen=True)
class RunStatus:
    """State of a run. `seconds_left` is None while some member has no epoch behind it, of start or training."""

    path: Path
    members: tuple[MemberStatus, ...]
    seconds_left: float | None

    @property
    def finished(self) -> bool:
        return all(fold.state == "done" for member in self.members for fold in member.folds)


def fold_status(
    folder: Path,
    member: str,
    k: int,
    name: str,
    start: Phase,
    training: Phase,
    queued: Queued | None = None,
) -> FoldStatus:
    """State of one fold folder. `start` and `training` are its own (`read_phases`), `queued` its job on a cluster,
    where one was submitted."""
    problem = by = ""
    if (folder / "done.json").is_file():
        state = "done"
    elif by := holder(folder):
        state = "running"
    elif queued is not None and queued.state:
        state, by = "queued" if queued.state == "PENDING" else "running", str(queued)
    elif (folder / "failed.json").is_file():
        state, problem = "failed", str(read_json(folder / "failed.json").get("error", ""))
    else:
        begun = any((folder / name).is_file() for name in CHECKPOINTS)
        state = "stopped" if begun else "waiting"
        by = str(queued) if queued is not None and queued.state is None else ""
    if state == "done":
        return FoldStatus(member, k, name, state, training.epochs, training.epochs, 0.0)
    starting = not training.seconds and len(start.seconds) < start.epochs
    phase = start if starting else training
    lacks = [part.seconds_left for part in ((start, training) if starting else (training,))]
    left = None if None in lacks else sum(part or 0.0 for part in lacks)
    return FoldStatus(member, k, name, state, len(phase.seconds), phase.epochs, left, problem, by, starting)


def read_phases(folders: Sequence[Path], start: int, training: int) -> list[tuple[Phase, Phase]]:
    """(start, training) of each of a member's fold folders; `start` and `training` say how many epochs these take.

    Until an epoch of training is logged the start's pace stands in for it: with its teacher or decoder, an epoch of the
    start takes no less. Raises: DataError for a log that is damaged.
    """
    started, trained = (
        [tuple(float(line["seconds"]) for line in read_log(folder, name)) for folder in folders]
        for name in (START_LOG, LOG)
    )
    start_pace, pace = (_mean([value for log in logs for value in log]) for logs in (started, trained))
    pace = start_pace if pace is None else pace
    return [
        (Phase(start, before, start_pace), Phase(training, log, pace))
        for before, log in zip(started, trained, strict=True)
    ]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def seconds_left(members: Sequence[MemberStatus]) -> float | None:
    """Seconds that the folds still need, shared by as many as run now; None where some pace is unknown."""
    folds = [fold for member in members for fold in member.folds]
    if any(fold.seconds_left is None for fold in folds):
        return None
    at_once = max(1, sum(fold.state == "running" for fold in folds))
    return sum(fold.seconds_left or 0.0 for fold in folds) / at_once


def read_log(folder: Path, name: str = LOG) -> list[dict[str, Any]]:
    """Lines of a fold's log.jsonl, oldest epoch first; empty where there is none. `name`: START_LOG for its start's."""
    path = folder / name
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}", f"rm {path}: training does without it") from None


def epochs_logged(folder: Path) -> int:
    """Epochs that a fold has behind it, those of its start included."""
    return len(read_log(folder)) + len(read_log(folder, START_LOG))


def locked(folder: Path) -> bool:
    """True while some process trains in this fold folder; False also where the file system has no locks to ask."""
    path = folder / ".lock"
    if not path.is_file():
        return False
    with path.open("r") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # ENOLCK, ENOSYS: a file system without locks says nothing of who trains
            return False
    return False


def holder(folder: Path) -> str:
    """Who trains in this fold folder, as "process 4711 on gpu07, SLURM job 17_2"; empty where nobody does."""
    if not locked(folder):
        return ""
    try:
        content = json.loads((folder / ".lock").read_text(encoding="utf-8"))
        job = f", SLURM job {content['job']}" if content["job"] else ""
        return f"process {content['pid']} on {content['host']}{job}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"  # it has the lock and has not yet written who it is


def job_name(run: Path) -> str:
    """What a run's jobs are called in SLURM's queue."""
    return "midog-" + re.sub(r"[^\w.-]", "_", run.absolute().name)


def jobs_file(run: Path) -> Path:
    """Where a run keeps which SLURM job trains which fold."""
    return run / "slurm" / "jobs.json"


def submitted_jobs(run: Path) -> dict[tuple[str, int], str]:
    """(member, fold) → the SLURM job it was last submitted as; empty for a run that never saw a cluster."""
    if not jobs_file(run).is_file():
        return {}
    return {(str(job["member"]), int(job["fold"])): str(job["job"]) for job in read_json(jobs_file(run))["jobs"]}


def list_queue(run: Path) -> dict[str, tuple[str, str]] | None:
    """Job → (SLURM's state, reason) of the run's jobs that wait or run; None where `squeue` does not answer.

    Asked for by name: asked for by id, squeue fails as soon as it has forgotten one of them.
    """
    command = ["squeue", "--noheader", "--array", f"--name={job_name(run)}", "--format=%i|%T|%r"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    rows = (line.strip().split("|", 2) for line in listed.splitlines() if line.count("|") >= 2)
    return {job: (state, reason if reason != "None" else "") for job, state, reason in rows}


def queued_folds(run: Path) -> dict[tuple[str, int], Queued]:
    """(member, fold) → its job on a cluster and what SLURM says of it."""
    jobs = submitted_jobs(run)
    listed = list_queue(run) if jobs else None
    return {
        fold: Queued(job, *(listed.get(job, ("", "")) if listed is not None else (None,))) for fold, job in jobs.items()
    }


def readable_seconds(seconds: float | None) -> str:
    """90 → "1 min 30 s"; None → "unknown"."""
    if seconds is None or not math.isfinite(seconds):
        return "unknown"
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
