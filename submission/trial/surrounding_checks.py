"""Line D of the check-list: what the algorithm's process sees, how it fails, how long and how large it is."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from submission.challenge import TRACK2, plain
from submission.trial.enclosure import PROCESSES, SHARED_MEMORY
from submission.trial.output_checks import UNANSWERED, Check, Finding, first, say
from submission.trial.runners import GIB
from submission.trial.trials import STATUS, Evidence, Trial
from submission.verdict import Verdict

WEIGHTS, CONTRACT = 4, 5
"""Exit statuses: weights that cannot be used; input or output that cannot."""
UNLIMITED = -1
NO_CONTROL = "but so it is outside the contract: no control here"


def asked(judge: Callable[[Evidence, dict[str, Any]], Finding]) -> Check:
    """A check on what a process under the runner answered about its surroundings.

    The control: a process on this machine without the contract is asked the same, and a good answer from there is told,
    because a question whose answer does not turn proves nothing.
    """

    def check(evidence: Evidence) -> Finding:
        if not evidence.inside:
            return "no answer from inside: Python could not be run there"
        found = judge(evidence, dict(evidence.inside))
        if evidence.outside and _good(found) and _good(judge(evidence, dict(evidence.outside))):
            return say("pass", "; ".join(filter(None, [getattr(found, "detail", ""), NO_CONTROL])))
        return found

    return check


def _good(found: Finding) -> bool:
    return found.status == "pass" if isinstance(found, Verdict) else not found


@asked
def no_network(evidence: Evidence, inside: dict[str, Any]) -> Finding:
    """A listener on this machine is reached from this machine and not from inside; else the question says nothing."""
    control = evidence.outside.get("reached")
    if not control:
        return say("skip", "the control failed: this machine does not reach its own listener")
    if inside["reached"]:
        return f"reached {inside['reached'][0]}"
    return say("pass", f"a listener that this machine reaches on {len(control)} addresses is out of reach")


@asked
def other_user(evidence: Evidence, inside: dict[str, Any]) -> Finding:
    if inside["uid"] == 0:
        return "runs as root"
    if not inside["home"]:
        return f"user {inside['uid']} has no passwd entry"
    return say("pass", f"user {inside['uid']}, home {inside['home']}")


@asked
def read_only_root(evidence: Evidence, inside: dict[str, Any]) -> Finding:
    writable = [path for path in ("/", "/usr", "/etc") if not inside["read_only"][path]]
    if writable:
        return f"{writable[0]} can be written"
    if inside["read_only"]["/tmp"]:
        return "/tmp cannot be written"
    return f"/tmp holds {plain(inside['tmp'][0])} at the start" if inside["tmp"] else ""


@asked
def memory_limit(evidence: Evidence, inside: dict[str, Any]) -> Finding:
    if inside["data"] == UNLIMITED or inside["data"] > 15 * GIB:
        return "RLIMIT_DATA is not set"
    return say("pass", f"RLIMIT_DATA {inside['data'] / GIB:.0f} GiB")


@asked
def confined(evidence: Evidence, inside: dict[str, Any]) -> Finding:
    """Small shared memory, few processes, no capabilities, none to be had."""
    limits = [inside["processes"], int(inside["pids"]) if str(inside["pids"]).isdigit() else UNLIMITED]
    processes = min((limit for limit in limits if limit != UNLIMITED), default=UNLIMITED)
    problems = [
        f"/dev/shm of {inside['shm'] // 1024} MiB" if inside["shm"] > SHARED_MEMORY // 1024 else "",
        f"capabilities {inside['capabilities']}" if int(inside["capabilities"], 16) else "",
        "new privileges can be had" if inside["no_new_privileges"] != "1" else "",
    ]
    found = first(problems)
    limited = processes != UNLIMITED and processes <= PROCESSES
    if not found and not limited:
        return say("warn", "the number of processes is not limited to 256 here")
    return found or say("pass", f"shm {inside['shm'] // 1024} MiB, {processes} processes, no capabilities")


@asked
def no_gpu(evidence: Evidence, inside: dict[str, Any]) -> Finding:
    return f"{inside['gpus'][0]} is visible" if inside["gpus"] else ""


def models(evidence: Evidence) -> Finding:
    """/opt/ml/model empty, with a bundle, a nested one, foreign files, a damaged bundle."""
    wanted = {"no model": 0 if evidence.runner.baked else WEIGHTS, "foreign model": WEIGHTS, "damaged model": WEIGHTS}
    wanted["nested model"] = 0
    tried = {name: trial for name, trial in evidence.variants.items() if name in wanted}
    faults = [
        f"{name}: status {trial.outcome.status}, not {wanted[name]}: {plain(trial.outcome.last_line)}"
        for name, trial in tried.items()
        if trial.outcome.status != wanted[name]
    ]
    nested = evidence.variants.get("nested model")
    if nested is not None and not faults and nested.content != evidence.base.content:
        faults.append("nested model: other bytes than with the bundle at the top")
    statuses = ", ".join(f"{name} {trial.outcome.status}" for name, trial in tried.items())
    return first(faults) or say("pass", f"status by case: {statuses}")


def clean_streams(evidence: Evidence) -> Finding:
    """Every line of both streams is UTF-8 and shorter than the platform takes."""
    faults = [f"{trial.name}: {text}" for trial in evidence.all if (text := stream_problem(trial))]
    return first(faults) or say("pass", f"{len(evidence.all)} runs")


def stream_problem(trial: Trial) -> str:
    """What the platform would choke on in one run's stdout or stderr, "" for nothing."""
    for name, content in (("stdout", trial.outcome.stdout), ("stderr", trial.outcome.stderr)):
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as error:
            return f"{name} has a byte that is no UTF-8 at {error.start}"
        longest = max(map(len, content.split(b"\n")), default=0)
        if longest >= TRACK2.line_bytes:
            return f"{name} has a line of {longest} bytes"
    return ""


def times(evidence: Evidence) -> Finding:
    """Wall time of the jobs that were answered; start and inference as the algorithm itself prints them."""
    seconds = [trial.outcome.seconds for trial in evidence.answered]
    if not seconds:
        return UNANSWERED
    shown = [_printed(trial, rb"start ([\d.]+) s, inference ([\d.]+) s") for trial in evidence.answered]
    parts = np.array([pair for pair in shown if pair is not None])
    apart = f"; start {np.median(parts[:, 0]):.1f} s, inference {np.median(parts[:, 1]):.1f} s" if len(parts) else ""
    text = f"median {statistics.median(seconds):.1f} s{apart}; longest {max(seconds):.1f} s"
    return say("pass" if max(seconds) <= TRACK2.stack_seconds else "fail", text)


def _printed(trial: Trial, pattern: bytes) -> NDArray[np.float64] | None:
    found = re.search(pattern, trial.outcome.stdout)
    return np.array([float(group) for group in found.groups()]) if found else None


def memory(evidence: Evidence) -> Finding:
    """Peak memory as the algorithm itself prints it."""
    peaks = [trial.outcome.peak_megabytes for trial in evidence.answered]
    known = [(peak, trial.name) for peak, trial in zip(peaks, evidence.answered, strict=True) if peak is not None]
    if not known:
        return say("info", "the algorithm prints no peak memory")
    return say("info", f"{max(known)[0]} MB ({max(known)[1]})")


def last_lines(evidence: Evidence) -> Finding:
    """The one line that a participant is shown of a failure holds the problem and the fix."""
    failed = [trial for trial in evidence.all if trial.outcome.status != 0]
    poor = [trial for trial in failed if not re.search(r"\S.*; fix: \S", trial.outcome.last_line)]
    found = first([f"{trial.name}: {plain(trial.outcome.last_line) or 'nothing on stderr'}" for trial in poor])
    return found or say("pass", f"{len(failed)} failures")


def status_passes(evidence: Evidence) -> Finding:
    """The algorithm's exit status is the job's, also where /output cannot be written."""
    if evidence.exit_status != STATUS:
        return f"a process that ends with {STATUS} is seen to end with {evidence.exit_status}"
    closed = evidence.variants.get("unwritable /output")
    if closed is not None and closed.outcome.status != CONTRACT:
        status = closed.outcome.status
        return f"{closed.name}: status {status}, not {CONTRACT}: {plain(closed.outcome.last_line)}"
    return ""
