"""Lines F of the check-list: the invoke flavour, asked over HTTP from inside its own surroundings as the platform does.

One program starts the server where the algorithm runs, drives it, and prints what it saw; the verdicts are made here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from submission.challenge import TRACK2, plain
from submission.trial.runners import APP, Conditions, Runner
from submission.trial.trials import Evidence, last_json
from submission.verdict import Verdict, passed

SECOND, REFUSED = "sizes", "cut"
"""Jobs beside the base job: another good one, and one that cannot be answered."""
ANSWERED = 201
END = 5.0
"""Seconds in which a server has to end when it is asked to."""
LINES = {
    "F1": "exec and invoke give the same bytes",
    "F2": "two calls in one process, /input linked anew between them",
    "F3": "/health 503 before the weights, 200 after",
    "F4": "/invoke 201; 500 for a bad stack, after which the next call works",
    "F6": "SIGTERM ends it within 5 s",
}

DRIVER = """
import base64, http.client, json, os, shutil, signal, subprocess, sys, tempfile, time
place = tempfile.mkdtemp()
link, output = place + "/input", place + "/output"
errors = open(place + "/stderr", "wb")
words = [sys.executable, APP + "/inference.py", "--api", "invoke", "--input", link, "--output", output]
server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors)
def ask(method, path, limit=60):
    try:
        line = http.client.HTTPConnection("127.0.0.1", PORT, timeout=limit)
        line.request(method, path)
        return line.getresponse().status
    except OSError:
        return None
health = []
while server.poll() is None and (not health or health[-1] != 200) and len(health) < 3000:
    status = ask("GET", "/health")
    health.append(status) if status else time.sleep(0.02)
    time.sleep(0.05)
calls = []
for name in CALLS:
    if os.path.islink(link):
        os.unlink(link)
    os.symlink(INPUT + "/" + name, link)
    shutil.rmtree(output, ignore_errors=True)
    os.mkdir(output)
    started = time.monotonic()
    status = ask("POST", "/invoke", 300)
    seconds = time.monotonic() - started
    files = {f: base64.b64encode(open(output + "/" + f, "rb").read()).decode() for f in os.listdir(output)}
    calls.append([status, seconds, files])
started = time.monotonic()
server.send_signal(signal.SIGTERM)
try:
    ended = server.wait(20)
except subprocess.TimeoutExpired:
    server.kill()
    ended = None
seconds = time.monotonic() - started
said = open(place + "/stderr", "rb").read().decode("utf-8", "backslashreplace")
print(json.dumps({"health": sorted(set(health), key=health.index), "calls": calls, "ended": ended, "seconds": seconds,
                  "said": said[-2000:]}))
"""


def drive(runner: Runner, conditions: Conditions, folder: Path, calls: Sequence[str]) -> dict[str, Any]:
    """Start the server under the runner and have it answer the jobs `calls`, folders in `folder`, one after another.

    Returns: health: what /health answered, in order; calls: (status, seconds, output files by name in base64) each;
    ended: its exit status and seconds: how long that took; said: the end of its stderr. Empty where it could not be
    run.
    """
    values = {"APP": APP, "PORT": TRACK2.port, "INPUT": str(TRACK2.input_dir), "CALLS": list(calls)}
    head = "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())
    return last_json(runner.ask(f"{head}\n{DRIVER}", conditions, folder).stdout)


def judge_invocation(evidence: Evidence) -> Iterator[Verdict]:
    """A verdict for each line F; skipped where the runner cannot show it or the jobs it needs were not run."""
    by_name = {trial.job.name: trial for trial in evidence.trials}
    absent = [name for name in (SECOND, REFUSED) if name not in by_name]
    why = evidence.runner.skips().get("F") or (f"needs the jobs {' and '.join(absent)}" if absent else "")
    if why:
        yield from (Verdict(line, what, "skip", why) for line, what in LINES.items())
        return
    base_name = evidence.base.job.name
    calls = [base_name, SECOND, base_name, REFUSED, base_name]
    seen = drive(evidence.runner, evidence.usual, evidence.base.job.folder.parent, calls)
    if not seen:
        yield from (Verdict(line, what, "fail", "the server could not be driven") for line, what in LINES.items())
        return
    first, second, again, refused, after = ((status, _answer(files)) for status, _, files in seen["calls"])
    base, other = (ANSWERED, evidence.base.content), (ANSWERED, by_name[SECOND].content)
    yield _line("F1", first == base, f"status {first[0]}")
    yield _line("F2", (second, again) == (other, base), f"status {second[0]}, {again[0]}")
    yield _line("F3", seen["health"] == [503, 200], ", ".join(map(str, seen["health"])))
    told = by_name[REFUSED].outcome.last_line.partition(":")[0] in seen["said"] and "fix:" in seen["said"]
    yield _line("F4", refused == (500, None) and after == base and told, f"status {refused[0]}, then {after[0]}")
    quick = seen["ended"] == 0 and seen["seconds"] <= END
    yield _line("F6", quick, f"status {seen['ended']} after {seen['seconds']:.1f} s")


def _line(line: str, good: bool, detail: str) -> Verdict:
    return passed(line, LINES[line], good, plain(detail))


def _answer(files: Mapping[str, str]) -> bytes | None:
    content = files.get(TRACK2.output_file)
    return None if content is None else base64.b64decode(content)
