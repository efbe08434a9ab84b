"""Running the jobs, once under the usual conditions and one of them under odd ones; what came of it, unjudged."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midog.errors import UsageError
from submission.challenge import TRACK2
from submission.trial.enclosure import own_in_tmp
from submission.trial.jobs import BASE, Job
from submission.trial.runners import Conditions, Outcome, Runner
from submission.trial.variants import lay_out, variants

Report = Callable[[str], None]
Predict = Callable[[Path], Sequence[float]]

STATUS = 7
"""An exit status that nothing else gives."""
COMPARED = (BASE, "sizes", "damaged", "mixed")
"""Jobs whose answers are compared with `midog predict`."""
QUESTIONS = """
import glob, json, os, pwd, resource, socket
def reached(address):
    try:
        socket.create_connection(tuple(address), 2).close()
        return True
    except OSError:
        return False
def home():
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None
def read_only(path):
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
def kilobytes(path):
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize // 1024
def status(name):
    with open("/proc/self/status") as file:
        return next((line.split()[1] for line in file if line.startswith(name + ":")), None)
def pids():
    for path in ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"):
        if os.path.isfile(path):
            with open(path) as file:
                return file.read().strip()
linux = os.path.isdir("/proc/self")
print(json.dumps({
    "reached": [address for address in ADDRESSES if reached(address)],
    "uid": os.getuid(), "home": home(), "read_only": {p: read_only(p) for p in ("/", "/usr", "/etc", "/tmp")},
    "data": resource.getrlimit(resource.RLIMIT_DATA)[0], "processes": resource.getrlimit(resource.RLIMIT_NPROC)[0],
    "pids": pids() if linux else None, "capabilities": status("CapEff") if linux else None,
    "no_new_privileges": status("NoNewPrivs") if linux else None,
    "shm": kilobytes("/dev/shm") if linux else None, "gpus": glob.glob("/dev/nvidia[0-9]*"),
    "tmp": sorted({*os.listdir("/tmp")} - {*OWN}),
}))
"""


@dataclass(frozen=True)
class Trial:
    """One run: what it was, how it ended, and every file found in its /output by relative path."""

    name: str
    job: Job
    outcome: Outcome
    files: Mapping[str, bytes]

    @property
    def content(self) -> bytes | None:
        return self.files.get(TRACK2.output_file)

    @property
    def entries(self) -> Any:
        """The parsed output; None where there is none or it is no JSON."""
        try:
            return json.loads(self.content or b"")
        except ValueError:
            return None

    @property
    def confidence(self) -> NDArray[np.float64] | None:
        """(n,) float64; None unless every entry has a number and there is one per page."""
        try:
            values = [float(entry[TRACK2.confidence_key]) for entry in self.entries]
        except (TypeError, ValueError, KeyError):
            return None
        return np.array(values) if self.outcome.status == 0 and len(values) == self.job.pages else None


@dataclass(frozen=True)
class Evidence:
    """Everything the check-list is judged by.

    variants: the base job under another condition, by its name. inside, outside: what the same questions were answered
    by a process under the runner and by one on this machine (empty: could not be asked). exit_status: of a process that
    ended with `STATUS`. usual: the conditions of the trials. predicted: job → confidences by `midog predict`.
    threshold: the bundle's, where known.
    """

    runner: Runner
    trials: tuple[Trial, ...]
    base: Trial
    variants: Mapping[str, Trial]
    inside: Mapping[str, Any]
    outside: Mapping[str, Any]
    exit_status: int
    usual: Conditions
    folder: Path
    bundle: Path | None = None
    threshold: float | None = None
    predicted: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def serving(self, line: str) -> list[Trial]:
        return [trial for trial in self.trials if line in trial.job.lines]

    @property
    def all(self) -> list[Trial]:
        return [*self.trials, *self.variants.values()]

    @property
    def answered(self) -> list[Trial]:
        """Trials from which an answer was due and which ended well."""
        return [trial for trial in self.trials if trial.job.pages is not None and trial.outcome.status == 0]


def gather(
    runner: Runner,
    jobs: Sequence[Job],
    bundle: Path | None,
    folder: Path,
    report: Report,
    predict: Predict | None,
    threshold: float | None = None,
) -> Evidence:
    """Run every job, the base job's variants and the questions; see `Evidence`.

    Raises: UsageError without weights or jobs; WeightsError or ContractError when the bundle cannot be unpacked.
    """
    if bundle is None and not runner.baked:
        raise UsageError(f"the {runner.name} has no weights of its own", "name the bundle: model.tar.gz or a folder")
    base = next((job for job in jobs if job.name == BASE), next((job for job in jobs if job.pages), None))
    if base is None:
        raise UsageError("no job that can be answered", "keep at least one job with pages")
    folder.mkdir(parents=True, exist_ok=True)
    model = None if bundle is None else lay_out(bundle, folder / "model")
    usual = Conditions(model=model)

    def attempt(name: str, job: Job, conditions: Conditions) -> Trial:
        trial = run_job(runner, name, job, folder / "output" / name, conditions)
        report(f"{name}: status {trial.outcome.status}, {trial.outcome.seconds:.1f} s")
        return trial

    trials = tuple(attempt(job.name, job, usual) for job in jobs)
    odd = dict(variants(runner, usual, folder))
    tried = {name: attempt(f"{base.name}, {name}", base, conditions) for name, conditions in odd.items()}
    with listening() as addresses:
        questions = f"ADDRESSES, OWN = {addresses!r}, {own_in_tmp()!r}\n{QUESTIONS}"
        inside = last_json(runner.ask(questions, usual).stdout)
        outside = last_json(subprocess.run([sys.executable, "-c", questions], capture_output=True, check=False).stdout)
    status = runner.ask(f"raise SystemExit({STATUS})", usual).status
    found = next(trial for trial in trials if trial.job is base)
    evidence = Evidence(runner, trials, found, tried, inside, outside, status, usual, folder, bundle, threshold)
    if predict is None and model is not None:
        report("midog predict on the same jobs")
        from midog.bundle import open_bundle
        from submission.predict import predict_what

        opened = open_bundle(model, device="cpu")
        evidence = replace(evidence, threshold=opened.point.threshold)

        def predict(path: Path) -> Sequence[float]:
            return [float(value) for value in predict_what(opened, path).confidence]

    if predict is not None:
        wanted = [trial.job for trial in trials if trial.job.name in COMPARED and trial.outcome.status == 0]
        evidence = replace(evidence, predicted={job.name: np.array(predict(job.folder)) for job in wanted})
    return evidence


def run_job(runner: Runner, name: str, job: Job, output: Path, conditions: Conditions) -> Trial:
    """Run one job into an empty `output`."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    outcome = runner.run(job.folder, output, conditions)
    files = {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}
    return Trial(name, job, outcome, files)


@contextmanager
def listening() -> Iterator[list[tuple[str, int]]]:
    """Addresses of a listener on this machine, on each of its own addresses that it reaches itself."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        hosts = {"127.0.0.1"}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # an address for documentation: nothing is sent
                hosts.add(probe.getsockname()[0])
            except OSError:
                pass
        yield [(host, port) for host in sorted(hosts)]


def last_json(stdout: bytes) -> dict[str, Any]:
    """The JSON object on the last line; empty where there is none."""
    try:
        found = json.loads(stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}
