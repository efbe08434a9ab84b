"""Folds on a SLURM cluster: one fold, one job, submitted as an array through submitit.

submitit submits, and requeues a job at its time limit or when it is pre-empted. What became of a fold is read from its
folder and from `squeue`, never from submitit's results: that needs no accounting database, survives the submitting
process, and unpickles nothing. A job that ended without a result is submitted again, by this process or by the same
command later.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import Checkpointable, DelayedSubmission

from midog.errors import MidogError, UsageError
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
from midog.training.slurm_settings import Slurm

REQUEUES = 100
"""Time limits that one fold may meet. Each must bring it an epoch further, or the job ends there."""
SLOWEST_POLL = 30.0
"""Seconds between two questions to the cluster, at most: many users ask it."""


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


@dataclass
class Share:
    """A run's folds on the cluster. `tally` counts how they end, `waiting` says which SLURM job has which fold,
    `attempts` how often each was submitted, `gone` of which the cluster knew nothing at the last look."""

    run: Path
    jobs: Sequence[Job]
    tally: Tally
    waiting: dict[Job, str] = field(default_factory=dict)
    attempts: Counter[Job] = field(default_factory=Counter)
    gone: set[Job] = field(default_factory=set)

    def submit(self, jobs: Sequence[Job], slurm: Slurm, options: Sequence[str]) -> None:
        """Raises: UsageError when SLURM refuses the jobs, MidogError when it does not answer."""
        new = _assign(jobs, self.run, slurm, options, self.tally)
        self.waiting |= new
        self.attempts.update(list(new))

    def look(self, listed: Mapping[str, Any], slurm: Slurm, options: Sequence[str]) -> bool:
        """Count what has ended and submit again what ended without a result; whether anything has."""
        before, self.gone = self.gone, {job for job in self.waiting if _ended(job, self.waiting[job], listed)}
        # Twice: what a node has written may take a moment to be seen here.
        ended = [job for job in self.waiting if job.done or job in self.gone & before]
        again = [job for job in ended if not settle(job, self.tally)]
        for job in ended:
            del self.waiting[job]
        for job in [job for job in again if self.attempts[job] >= ATTEMPTS]:
            again.remove(job)
            give_up(job, self.tally, self.attempts[job], "as a job of SLURM")
        if again:
            self.tally.report(f"{', '.join(map(str, again))}: ended without a result, submitted again")
            self.submit(again, slurm, options)
        return bool(ended)

    def leave(self) -> None:
        """Say what goes on without this process."""
        names = " ".join(sorted({job.partition("_")[0] for job in self.waiting.values()}))
        self.tally.report(
            f"{len(self.waiting)} folds are left to the cluster; `midog status {self.run}` shows them, the same "
            f"command waits for them again, `scancel {names}` ends them"
        )


def train_on_cluster(shares: Sequence[Share], slurm: Slurm, options: Sequence[str]) -> None:
    """Submit the folds of all runs that are not in the queue yet, then wait for all of them.

    The jobs do not need this process: when it ends, they go on, and the same command waits for them again.

    Raises: UsageError when SLURM refuses the jobs, MidogError when it does not answer at first.
    """
    changed = time.monotonic()
    try:
        for share in shares:
            share.submit(share.jobs, slurm, options)
        with epochs_bar([job for share in shares for job in share.jobs]) as show:
            while busy := [share for share in shares if share.waiting]:
                # A question for each run: about one a second at most.
                time.sleep(min(SLOWEST_POLL, len(busy) + (time.monotonic() - changed) / 10))
                lists = [(share, list_queue(share.run)) for share in busy]
                show(_counted(lists))
                for share, listed in lists:
                    # None: a controller that restarts; its jobs go on meanwhile.
                    if listed is not None and share.look(listed, slurm, options):
                        changed = time.monotonic()
    except KeyboardInterrupt:
        for share in [share for share in shares if share.waiting]:
            share.leave()
        raise


def _ended(job: Job, number: str, listed: Mapping[str, Any]) -> bool:
    """The cluster has forgotten the job, and nobody trains the fold (what a lost job left behind may still)."""
    return number not in listed and not holder(job.folder)


def _counted(lists: Sequence[tuple[Share, Mapping[str, tuple[str, str]] | None]]) -> str:
    if any(listed is None for _, listed in lists):
        return "SLURM does not answer"
    found = [(listed or {}).get(number) for share, listed in lists for number in share.waiting.values()]
    states = [state for state, _ in filter(None, found)]
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
