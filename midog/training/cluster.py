"""Folds on a SLURM cluster: one fold, one job, submitted as an array through submitit.

submitit submits, and requeues a job at its time limit or when it is pre-empted. What became of a fold is read from its
folder and from `squeue`, never from submitit's results: that needs no accounting database, survives the submitting
process, and unpickles nothing. A job that ended without a result is submitted again, by this process or by the same
command later.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import Checkpointable, DelayedSubmission

from midog.errors import MidogError, UsageError, unknown
from midog.files import lock, write_json
from midog.status import epochs_logged, holder, job_name, jobs_file, list_queue, submitted_jobs
from midog.training.jobs import (
    ATTEMPTS,
    Job,
    Tally,
    epochs_bar,
    explain,
    fold_command,
    give_up,
    keep_failure,
    settle,
    start,
)

REQUEUES = 100
"""Time limits that one fold may meet. Each must bring it an epoch further, or the job ends there."""
SLOWEST_POLL = 30.0
"""Seconds between two questions to the cluster, at most: many users ask it."""


@dataclass(frozen=True)
class Slurm:
    """What a fold's job asks the cluster for.

    Attributes:
        time: minutes after which a job is stopped, requeued and continued.
        partition: of the cluster; empty is its default one. So are account, qos and constraint.
        cpus: processors, and torch's threads.
        gpus: 1, or 0 to train on the processor. A fold trains on one GPU.
        mem: memory, such as "32G"; empty is the partition's default.
    """

    time: int
    partition: str = ""
    cpus: int = 4
    gpus: int = 1
    mem: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""


def parse_slurm(text: str) -> Slurm:
    """ "partition=gpu,time=8:00:00,mem=32G" as settings.

    Raises: UsageError where there is no SLURM, for a key that does not exist, naming the nearest, or for a value that
        cannot be read.
    """
    if shutil.which("sbatch") is None:
        raise UsageError(
            "--slurm: there is no sbatch on this machine",
            "type the command on a login node of the cluster, or leave --slurm out to train on this machine",
        )
    known = tuple(field.name for field in fields(Slurm))
    words: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise UsageError(f"--slurm {part}: KEY=VALUE is expected", "--slurm partition=gpu,time=8:00:00")
        if key not in known:
            raise unknown("key of --slurm", key, known)
        words[key] = value
    if "time" not in words:
        raise UsageError(
            "--slurm says no time limit",
            "add time=8:00:00 (hours:minutes:seconds): a fold that needs longer is requeued and goes on",
        )
    gpus = _whole("gpus", words.get("gpus", "1"))
    if gpus > 1:
        raise UsageError(f"--slurm gpus={gpus}: a fold trains on one GPU", "gpus=1; folds run side by side")
    return Slurm(
        time=_minutes(words["time"]),
        cpus=max(1, _whole("cpus", words.get("cpus", "4"))),
        gpus=gpus,
        mem=_memory(words["mem"]) if "mem" in words else "",
        **{key: words.get(key, "") for key in ("partition", "account", "qos", "constraint")},
    )


def _whole(key: str, value: str) -> int:
    if not value.isdigit():
        raise UsageError(f"--slurm {key}={value} is no whole number", f"{key}=1")
    return int(value)


def _minutes(value: str) -> int:
    """ "90", "1:30:00" or "2-12:00:00" in whole minutes, rounded up."""
    found = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d))|(\d+)", value)
    if found is None:
        fix = "minutes (90), hours:minutes:seconds (1:30:00) or days-hours:minutes:seconds (2-12:00:00)"
        raise UsageError(f"--slurm time={value} is no time limit", fix)
    days, hours, minutes, seconds, plain = (int(group or 0) for group in found.groups())
    whole = plain + days * 1440 + hours * 60 + minutes + math.ceil(seconds / 60)
    if not whole:
        raise UsageError(f"--slurm time={value}", "at least one minute")
    return whole


def _memory(value: str) -> str:
    if not re.fullmatch(r"\d+[MGT]", value):
        raise UsageError(f"--slurm mem={value} is no amount of memory", "mem=32G, or M or T")
    return value


class FoldJob(Checkpointable):
    """What runs on the cluster's node. Travels by reference: the node must see this Python and the run's folder."""

    def __init__(self, job: Job, command: Sequence[str], env: Mapping[str, str], limit: int) -> None:
        self.job, self.command, self.env, self.limit = job, list(command), dict(env), limit
        self.began, self.epochs, self.pid = 0.0, 0, 0

    def __call__(self) -> str:
        self.began, self.epochs = time.monotonic(), epochs_logged(self.job.folder)
        process = start(self.job, self.command, self.env, deaf=True)
        self.pid = process.pid
        code = process.wait()
        explain(self.job, code)
        return f"{self.job}: exit code {code}"

    def checkpoint(self) -> DelayedSubmission | None:  # type: ignore[override]
        """SLURM wants the node back: end the training, which goes on from its last epoch when the job runs again.

        Called by submitit's signal handler, in the middle of `wait` above: hence no second `wait` on the process.
        Returns None, so that the job is not requeued, when its whole time limit was not enough for one epoch.
        """
        if self.pid:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        used = (time.monotonic() - self.began + notice(self.limit)) / 60
        if self.pid and epochs_logged(self.job.folder) <= self.epochs and used > 0.8 * self.limit:
            problem = f"no epoch was finished within the job's time limit of {self.limit} minutes"
            keep_failure(self.job, UsageError(problem, "give it more time=, or fewer patches per epoch"))
            return None
        return DelayedSubmission(FoldJob(self.job, self.command, self.env, self.limit))


def train_on_cluster(jobs: Sequence[Job], run: Path, slurm: Slurm, options: Sequence[str], tally: Tally) -> None:
    """Submit the folds that are not in the queue yet, and wait for all of them.

    The jobs do not need this process: when it ends, they go on, and the same command waits for them again.

    Raises: UsageError when SLURM refuses the jobs.
    """
    waiting = _assign(jobs, run, slurm, options, tally)
    attempts, gone, changed = Counter(list(waiting)), set[Job](), time.monotonic()
    try:
        with epochs_bar(jobs) as show:
            while waiting:
                time.sleep(min(SLOWEST_POLL, 1 + (time.monotonic() - changed) / 10))
                listed = list_queue(run)
                show(_counted(waiting, listed))
                if listed is None:
                    continue  # a controller that restarts: its jobs go on meanwhile
                before, gone = gone, {job for job in waiting if _ended(job, waiting[job], listed)}
                # Twice: what a node has written may take a moment to be seen here.
                ended = [job for job in waiting if job.done or job in gone & before]
                again = [job for job in ended if not settle(job, tally)]
                for job in ended:
                    del waiting[job]
                    changed = time.monotonic()
                for job in [job for job in again if attempts[job] >= ATTEMPTS]:
                    again.remove(job)
                    give_up(job, tally, attempts[job], "as a job of SLURM")
                if again:
                    tally.report(f"{', '.join(map(str, again))}: ended without a result, submitted again")
                    waiting |= _assign(again, run, slurm, options, tally)
                    attempts.update(again)
    except KeyboardInterrupt:
        names = " ".join(sorted({job.partition("_")[0] for job in waiting.values()}))
        tally.report(
            f"{len(waiting)} folds are left to the cluster; `midog status {run}` shows them, the same command waits "
            f"for them again, `scancel {names}` ends them"
        )
        raise


def _ended(job: Job, number: str, listed: Mapping[str, Any]) -> bool:
    """The cluster has forgotten the job, and nobody trains the fold (what a lost job left behind may still)."""
    return number not in listed and not holder(job.folder)


def _counted(waiting: Mapping[Job, str], listed: Mapping[str, tuple[str, str]] | None) -> str:
    if listed is None:
        return "SLURM does not answer"
    states = [listed[number][0] for number in waiting.values() if number in listed]
    return f"{len(states) - states.count('PENDING')} running, {states.count('PENDING')} queued"


def _assign(jobs: Sequence[Job], run: Path, slurm: Slurm, options: Sequence[str], tally: Tally) -> dict[Job, str]:
    """The SLURM job of each fold: the one that is in the queue already, or a new one. A fold that somebody trains
    without a job of ours is skipped."""
    with lock(run / "slurm" / ".lock", f"another process is submitting the jobs of {run}"):
        listed, stored = list_queue(run), submitted_jobs(run)
        if listed is None:
            raise MidogError("SLURM does not answer: squeue failed", "repeat the command when `squeue` works")
        found = {job: stored[key] for job in jobs if stored.get(key := (job.member, job.k)) in listed}
        missing = [job for job in jobs if job not in found]
        for job in [job for job in missing if holder(job.folder)]:
            missing.remove(job)
            tally.skipped(job, holder(job.folder))
        new = _submit(missing, run, slurm, options) if missing else {}
        stored |= {(job.member, job.k): number for job, number in new.items()}
        rows = [{"member": member, "fold": k, "job": number} for (member, k), number in stored.items()]
        write_json(jobs_file(run), {"jobs": rows})
    for numbers, what in ((found, "in the queue already"), (new, "submitted")):
        if numbers:
            folds = "1 fold" if len(numbers) == 1 else f"{len(numbers)} folds"
            tally.report(f"{folds} {what}: SLURM job {', '.join(numbers.values())}")
    return {**found, **new}


def _submit(jobs: Sequence[Job], run: Path, slurm: Slurm, options: Sequence[str]) -> dict[Job, str]:
    """Submit one array. Raises: UsageError with what sbatch says."""
    for job in jobs:
        (job.folder / "failed.json").unlink(missing_ok=True)
    executor = SlurmExecutor(run.absolute() / "slurm", max_num_timeout=REQUEUES)
    executor.update_parameters(**parameters(slurm, run))
    env = {} if slurm.gpus else {"CUDA_VISIBLE_DEVICES": ""}
    try:
        with executor.batch():
            submitted = [
                executor.submit(FoldJob(job, fold_command(job, run, options), env, slurm.time)) for job in jobs
            ]
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        said = [line.strip() for line in str(error).splitlines() if "error:" in line] or [str(error)[:200]]
        raise UsageError(
            "SLURM refused the jobs", "`sinfo` lists partitions and time limits; change --slurm", said
        ) from None
    return {job: str(handle.job_id) for job, handle in zip(jobs, submitted, strict=True)}


def notice(limit: int) -> int:
    """Seconds before its time limit (minutes) at which a job is told; SLURM may be up to a minute early."""
    return min(90, 15 * limit)


def parameters(slurm: Slurm, run: Path) -> dict[str, Any]:
    """submitit's words for the same."""
    asked: dict[str, Any] = {
        "job_name": job_name(run),
        "time": slurm.time,
        "cpus_per_task": slurm.cpus,
        # srun no longer takes over what sbatch was told (SLURM 22.05), and would bind all threads to one processor.
        "srun_args": [f"--cpus-per-task={slurm.cpus}"],
        "signal_delay_s": notice(slurm.time),
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True},
    }
    if slurm.gpus:
        asked["gpus_per_node"] = slurm.gpus
    words = ("partition", "mem", "account", "qos", "constraint")
    return asked | {key: value for key in words if (value := getattr(slurm, key))}
