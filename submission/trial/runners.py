"""Ways to run the algorithm on one job folder: here as a plain process, elsewhere in a container engine.

A runner shows the algorithm what the platform shows it: /input, /output, /opt/ml/model, an empty /tmp, nothing else to
write to and no network. What it cannot show it says itself, so that nobody takes a skipped line for a passed one.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from submission.challenge import TRACK2
from submission.trial.enclosure import HOME, USER, Enclosure, interpreter

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "submission" / "inference.py"
PACKAGES = ("midog", "submission", "ensemble", "augment")
APP = "/opt/app"
LINKED_INPUT = "/opt/ml/input/data/job-input"
"""Where the platform puts a job, with /input a link to it."""
GRACE = 5.0
"""Seconds between the platform's SIGTERM and its SIGKILL."""
KEPT = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS")
GIB = 1 << 30
PROCESSOR_TOLERANCE = 1e-5
"""By which a patch's confidence may differ between jobs, where its neighbours in a batch differ, in float32."""
GPU_TOLERANCE = 0.05
"""The same in half precision, our choice: bfloat16 rounds values by up to 1 in 256, in another batch others.
Not measured on a GPU yet."""


@dataclass(frozen=True)
class Outcome:
    """What running one job gave."""

    status: int
    seconds: float
    stdout: bytes
    stderr: bytes
    timed_out: bool = False

    @property
    def peak_megabytes(self) -> int | None:
        """From the algorithm's own line on stdout; None where it printed none."""
        found = re.search(rb"peak memory (\d+) MB", self.stdout)
        return int(found[1]) if found else None

    @property
    def last_line(self) -> str:
        """The last line of stderr that holds anything: all that a participant is shown of a failure."""
        lines = [line for line in self.stderr.decode("utf-8", "backslashreplace").splitlines() if line.strip()]
        return lines[-1] if lines else ""


@dataclass(frozen=True)
class Conditions:
    """Under which one job runs; the defaults are the platform's, at their strictest.

    model: folder to be seen at /opt/ml/model; None: that folder is empty. tmp: folder to be seen at /tmp instead of an
    empty one, as the task before left it. workdir: where the process starts; None: wherever the runner starts it.
    memory: bytes, for runners that can limit it; data_limit: RLIMIT_DATA in bytes.
    """

    model: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    tmp: Path | None = None
    output_read_only: bool = False
    time_limit: float = TRACK2.stack_seconds
    data_limit: int = 15 * GIB
    memory: int | None = None


class Runner(Protocol):
    """One way to run the algorithm."""

    @property
    def name(self) -> str:
        """What the table is headed with."""

    @property
    def baked(self) -> bool:
        """Whether the algorithm brings weights of its own, so that it answers with an empty /opt/ml/model."""

    @property
    def tolerance(self) -> float:
        """By which the confidence of a patch may differ from job to job, and from `midog predict`."""

    def run(self, input_dir: Path, output_dir: Path, conditions: Conditions) -> Outcome:
        """Answer one job. A job folder that is a symbolic link is shown as one where that can be done."""

    def ask(self, code: str, conditions: Conditions, input_dir: Path | None = None) -> Outcome:
        """Run Python code where the algorithm would run, to see what it sees; `input_dir` is shown as /input."""

    def skips(self) -> Mapping[str, str]:
        """Lines of the check-list that this runner cannot show → why."""


class ProcessRunner:
    """Runs the very file that the image runs, /opt/app/inference.py, in a process of its own.

    As root, or where user namespaces are allowed, inside an `Enclosure`; otherwise as a plain child process with a
    clean environment, which shows less.
    """

    name = "plain process"
    baked = False
    tolerance = PROCESSOR_TOLERANCE

    def __init__(self, script: Path = SCRIPT, enclosed: bool = True) -> None:
        """`script`: another entry point. `enclosed`: False takes the plain process even where more is possible."""
        self.script = script
        self.enclosure = find_enclosure() if enclosed else None

    def skips(self) -> Mapping[str, str]:
        if self.enclosure is None:
            why = "needs root, or user namespaces"
            return dict.fromkeys(("B10", "D1", "D2", "D4", "D6", "D7", "F"), why)
        if not self.enclosure.user:
            return {"D2": "needs root: a user namespace of one's own holds one user"}
        return {}

    def run(self, input_dir: Path, output_dir: Path, conditions: Conditions) -> Outcome:
        """Answer one job; what every user may read is seen by the algorithm's."""
        output_dir.mkdir(parents=True, exist_ok=True)
        if self.enclosure is None:
            arguments = ["--input", str(input_dir.absolute()), "--output", str(output_dir.absolute())]
            arguments += ["--model", str(conditions.model.absolute())] if conditions.model else []
            return self._plain([sys.executable, str(self.script), *arguments], conditions)
        output_dir.chmod(0o777)
        binds = [(output_dir, str(TRACK2.output_dir), not conditions.output_read_only)]
        links = {}
        target = str(TRACK2.input_dir)
        if input_dir.is_symlink():
            links[target], target = LINKED_INPUT, LINKED_INPUT
        if input_dir.exists():
            binds.append((input_dir.resolve(), target, False))
        return self._enclosed([f"{APP}/inference.py"], conditions, binds, links)

    def ask(self, code: str, conditions: Conditions, input_dir: Path | None = None) -> Outcome:
        if self.enclosure is None:
            return self._plain([sys.executable, "-c", code], conditions)
        with tempfile.TemporaryDirectory(prefix="midog-output-") as output:
            Path(output).chmod(0o777)
            binds = [(Path(output), str(TRACK2.output_dir), True)]
            binds += [(input_dir.resolve(), str(TRACK2.input_dir), False)] if input_dir else []
            return self._enclosed(["-c", code], conditions, binds, {})

    def _enclosed(
        self,
        arguments: Sequence[str],
        conditions: Conditions,
        binds: list[tuple[Path, str, bool]],
        links: dict[str, str],
    ) -> Outcome:
        assert self.enclosure is not None
        with tempfile.TemporaryDirectory(prefix="midog-root-") as holder:
            stage, nothing, users = (Path(holder, name) for name in ("root", "nothing", "passwd"))
            stage.mkdir()
            nothing.mkdir()
            users.write_text(f"root:x:0:0::/root:/bin/sh\nuser:x:{USER}:{USER}::{HOME}:/bin/sh\n")
            binds += interpreter()
            binds += [(ROOT / package, f"{APP}/{package}", False) for package in PACKAGES]
            binds += [(self.script, f"{APP}/inference.py", False), (users, "/etc/passwd", False)]
            binds.append((conditions.model or nothing, str(TRACK2.uploaded_model), False))
            if conditions.tmp is not None:
                binds.append((conditions.tmp, "/tmp", True))
            environment = platform_environment(HOME) | dict(conditions.environment)
            command = self.enclosure.command(
                stage,
                binds,
                links,
                environment,
                conditions.workdir or "/",
                conditions.data_limit,
                [sys.executable, *arguments],
            )
            return run_command(command, conditions.time_limit)

    def _plain(self, command: Sequence[str], conditions: Conditions) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="midog-tmp-") as empty:
            environment = platform_environment("/nonexistent") | {"TMPDIR": str(conditions.tmp or empty)}
            # No GPU, as inside an enclosure: answers are compared with the processor's.
            environment |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **conditions.environment}

            def limit() -> None:
                resource.setrlimit(resource.RLIMIT_DATA, (conditions.data_limit, conditions.data_limit))

            return run_command(command, conditions.time_limit, environment, conditions.workdir or "/", limit)


def platform_environment(home: str) -> dict[str, str]:
    """What the platform sets, and how many threads this machine's user allows."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "HOME": home, "PYTHONUNBUFFERED": "1", "LOG_LEVEL": "INFO", "no_proxy": "*", **kept}


def run_command(
    command: Sequence[str],
    time_limit: float,
    environment: Mapping[str, str] | None = None,
    workdir: str | None = None,
    before: object = None,
) -> Outcome:
    """Run a command in a session of its own; past its time it is ended as the platform does it, SIGTERM first."""
    started = time.monotonic()
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=None if environment is None else dict(environment),
        cwd=workdir,
        preexec_fn=before if callable(before) else None,
        start_new_session=True,
    )
    late = False
    try:
        stdout, stderr = process.communicate(timeout=time_limit)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(process.pid, signal.SIGTERM)
        try:
            stdout, stderr = process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return Outcome(process.returncode, time.monotonic() - started, stdout, stderr, late)


def find_enclosure() -> Enclosure | None:
    """The strictest enclosure in which this Python starts here and finds the packages; None: there is none."""
    if any(shutil.which(name) is None for name in ("unshare", "setpriv", "prlimit", "chroot", "mount")):
        return None
    for enclosure in (Enclosure(False, True), Enclosure(True, False)):
        runner = ProcessRunner(enclosed=False)
        runner.enclosure = enclosure
        found = runner.ask("import sys; sys.path.insert(0, '/opt/app'); import numpy, submission.stack", Conditions())
        if found.status == 0:
            return enclosure
    return None
