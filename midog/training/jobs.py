"""One fold is one job: a process of its own that can be killed and started again.

The process runs the same command that a person would type for one member and one fold, so that a cluster, a GPU of this
machine and a hand all do the same thing, and repeating it is both retry and resume.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from midog import errors
from midog.errors import MidogError
from midog.files import read_json, write_json
from midog.progress import steps
from midog.provenance import provenance
from midog.status import holder, read_log, readable_seconds
from midog.training.folder import Busy

if TYPE_CHECKING:
    from midog.training.machine import Machine

ATTEMPTS = 3
"""How often a fold is started in one call when its process dies without a word."""
EXIT_KINDS = {2: "UsageError", 3: "DataError", 4: "WeightsError", 5: "ContractError"}

Report = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One fold of one member: `fold` is its name, `k` its position, `folder` where it is made, `after` the folder of
    the fold model that it starts from as its teacher."""

    member: str
    k: int
    fold: str
    folder: Path
    epochs: int
    after: Path | None = None

    def __str__(self) -> str:
        return f"{self.member} fold {self.fold}"

    @property
    def done(self) -> bool:
        return (self.folder / "done.json").is_file()

    @property
    def log(self) -> Path:
        return self.folder / "job.log"


def ready(jobs: Iterable[Job], running: Iterable[Job] = ()) -> list[Job]:
    """Those of `jobs` whose teacher is neither among them nor among those `running`: done, failed, or not asked for."""
    jobs = list(jobs)
    coming = {job.folder for job in (*jobs, *running)}
    return [job for job in jobs if job.after not in coming]


@dataclass(frozen=True)
class Failure:
    """Why a fold failed: the class of the error, its problem and fix."""

    kind: str
    problem: str
    fix: str


@dataclass
class Tally:
    """What became of the jobs of one call: a line for each as it ends, one error at the end."""

    run: Path
    wanted: int
    report: Report
    trained: int = 0
    failures: dict[Job, Failure] = field(default_factory=dict)
    busy: dict[Job, str] = field(default_factory=dict)

    def done(self, job: Job) -> None:
        self.trained += 1
        seconds = float(read_json(job.folder / "done.json")["seconds"])
        self.report(f"{job}: done in {readable_seconds(seconds)}")

    def failed(self, job: Job, failure: Failure) -> None:
        self.failures[job] = failure
        self.report(f"{job}: failed: {failure.problem}")

    def skipped(self, job: Job, by: str) -> None:
        self.busy[job] = by
        self.report(f"{job}: skipped, {by} is training it")

    def close(self) -> None:
        """Raises: MidogError for all failures at once, of their own kind (and exit code) where they share one, with
        their fix; Busy when nothing could be trained because other processes do."""
        if self.failures:
            raise self._failed()
        if self.busy and not self.trained:
            raise Busy(
                f"another process trains {', '.join(map(str, self.busy))}",
                "wait for it, or stop that process and repeat the command",
                [f"{job}: {by}" for job, by in self.busy.items()],
            )

    def _failed(self) -> MidogError:
        kinds = {failure.kind for failure in self.failures.values()}
        kind = getattr(errors, kinds.pop(), MidogError) if len(kinds) == 1 else MidogError
        fixes = {failure.fix for failure in self.failures.values() if failure.fix}
        again = "then repeat the command: only these are trained again"
        error: MidogError = kind(
            f"{len(self.failures)} of {self.wanted} folds failed; what was done is kept in {self.run}",
            f"{min(fixes)}; {again}" if len(fixes) == 1 else f"mend what is named above, {again}",
            self._told(len(fixes) > 1),
        )
        return error

    def _told(self, with_fixes: bool) -> list[str]:
        """A line for each reason with the folds that it stopped, and its fix where reasons have different ones."""
        folds: dict[Failure, list[str]] = {}
        for job, failure in self.failures.items():
            folds.setdefault(failure, []).append(str(job))
        lines = []
        for failure, names in folds.items():
            lines.append(f"{', '.join(names)}: {failure.problem}")
            if with_fixes and failure.fix:
                lines.append(f"  fix: {failure.fix}")
        return lines


def keep_failure(job: Job, error: Exception) -> Failure:
    """Write failed.json; on a full disk the error is still reported at the end."""
    if isinstance(error, MidogError):
        failure = Failure(type(error).__name__, error.problem, error.fix)
    else:
        failure = Failure("MidogError", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", "")
    trace = "".join(traceback.format_exception(error))
    content = {"error": str(error), **vars(failure), "traceback": trace, **provenance()}
    with suppress(MidogError):
        write_json(job.folder / "failed.json", content)
    return failure


def read_failure(job: Job) -> Failure | None:
    """What failed.json says; None where there is none."""
    if not (job.folder / "failed.json").is_file():
        return None
    content = read_json(job.folder / "failed.json")
    problem = content.get("problem", content.get("error", "failed"))
    return Failure(str(content.get("kind", "")), str(problem), str(content.get("fix", "")))


def fold_command(job: Job, run: Path, options: Sequence[str] = ()) -> list[str]:
    """The command that trains one fold of a run, whatever is left of it. `options` belong to the machine."""
    run = run.absolute()
    command = [sys.executable, "-m", "midog", "train", str(run / "recipe.yaml"), str(run / "patches.csv")]
    return [*command, "-o", str(run), "--member", job.member, "--fold", job.fold, *options]


def machine_options(machine: Machine, pretrained: Path | None) -> list[str]:
    """What a process of its own is told about the machine, as options of `midog train`."""
    options = ["--threads", str(machine.threads)] if machine.threads is not None else []
    options += ["--precision", machine.precision] if machine.precision != "auto" else []
    options += [f"--{name}" for name in ("checkpointing", "compile") if getattr(machine, name)]
    return options + (["--pretrained", str(pretrained.absolute())] if pretrained is not None else [])


def start(job: Job, command: Sequence[str], env: Mapping[str, str], deaf: bool = False) -> subprocess.Popen[bytes]:
    """Start a fold's process; what it says goes to the end of job.log.

    Args:
        env: added to this process's environment, such as CUDA_VISIBLE_DEVICES.
        deaf: leave SIGTERM and SIGUSR2 to the parent: SLURM sends them to every process of a job.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "failed.json").unlink(missing_ok=True)  # this attempt speaks for itself
    with job.log.open("a", encoding="utf-8") as log:
        log.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')} {os.uname().nodename}\n")
        log.flush()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            preexec_fn=_turn_deaf if deaf else None,
        )


def _turn_deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def explain(job: Job, code: int) -> None:
    """Keep the error of a process that ended with one before it came to train; a killed one left none."""
    if code in EXIT_KINDS and not job.done and not (job.folder / "failed.json").is_file() and not holder(job.folder):
        kind: type[MidogError] = getattr(errors, EXIT_KINDS[code])
        said = job.log.read_text(encoding="utf-8", errors="replace")
        found = re.findall(r"^[a-z]+: (.+)((?:\n  .*)*)\Z", said.rstrip(), re.MULTILINE)
        problem, rest = found[-1] if found else (f"exit code {code}", "")
        details = [line.strip() for line in rest.splitlines() if line.strip()]
        fix = next((line.removeprefix("fix: ") for line in details if line.startswith("fix: ")), f"see {job.log}")
        keep_failure(job, kind(problem, fix, [line for line in details if not line.startswith("fix: ")]))


def settle(job: Job, tally: Tally) -> bool:
    """Count how a job's process ended; False when it ended without a result and may be tried again."""
    if job.done:
        tally.done(job)
    elif failure := read_failure(job):
        tally.failed(job, failure)
    elif by := holder(job.folder):
        tally.skipped(job, by)
    else:
        return False
    return True


def give_up(job: Job, tally: Tally, attempts: int, how: str) -> None:
    """Fail a fold whose process died each time."""
    problem = f"its process ended {attempts} times without a result, at last {how}"
    fix = f"see the end of {job.log}; signal 9 is mostly the system's, for want of memory"
    tally.failed(job, keep_failure(job, MidogError(problem, fix)))


@contextmanager
def epochs_bar(jobs: Sequence[Job]) -> Iterator[Callable[[str], None]]:
    """A bar over all epochs of all jobs, from their logs; yields the function that looks and shows a note beside it."""
    with steps("training", sum(job.epochs for job in jobs)) as advance:
        seen = 0

        def show(note: str) -> None:
            nonlocal seen
            if not sys.stderr.isatty():
                return
            now = sum(job.epochs if job.done else len(read_log(job.folder)) for job in jobs)
            for _ in range(now - seen):
                advance(note)
            seen = max(seen, now)

        yield show
