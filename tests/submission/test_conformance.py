"""The check-list itself: an algorithm that keeps the rules passes, and each broken rule fails on its own line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from midog.bundle import open_bundle
from submission.challenge import TRACK2
from submission.conformance import CHECKS, conform, judge
from submission.engine import Engine, EngineRunner
from submission.predict import predict_what
from submission.trial.invocation import LINES
from submission.trial.jobs import BASE, make_jobs, open_to_all
from submission.trial.runners import Conditions, Outcome, ProcessRunner
from submission.trial.trials import STATUS, Evidence, Trial, run_job
from submission.verdict import Verdict, failures, passed, verdict_table

HONEST = """
import json, os, sys
from pathlib import Path
import numpy as np
from PIL import Image
def fail(text, status):
    print(text + "; fix: mend it", file=sys.stderr)
    sys.exit(status)
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
source, target = Path(arguments.get("--input", "/input")), Path(arguments.get("--output", "/output"))
model = Path(arguments.get("--model", "/opt/ml/model"))
found = [p for p in model.rglob("manifest.json")] if model.is_dir() else []
if not found:
    fail("no bundle", 4)
if (found[0].parent / "w.bin").read_bytes() != b"weights":
    fail("a damaged bundle", 4)
files = [p for p in source.glob("images/*/*") if p.suffix.lower() in (".tif", ".tiff") and p.name[0] != "."]
if len(files) != 1:
    fail("not one image", 5)
try:
    image = Image.open(files[0])
    count = image.n_frames
except Exception:
    fail("cannot count", 5)
values = []
for page in range(count):
    image.seek(page)
    values.append(float(np.asarray(image.convert("RGB"), dtype=float)[::3, ::5].std() / 128))
# BREAK
answers = [{"class": "atypical" if v >= 0.35 else "normal", "confidence": v} for v in values]
# CHANGE
text = json.dumps(answers)
try:
    (target / "multiple-mitotic-figure-classification.json").write_text(text)
except OSError:
    fail("cannot write", 5)
print(f"{count} pages; start 0.1 s, inference 0.2 s, peak memory 30 MB")
"""
JOBS = (BASE, "one", "permuted", "extremes", "planar", "hidden", "empty", "several")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    made = make_jobs(tmp_path_factory.mktemp("conformance") / "jobs")
    return tuple(job for job in made if job.name in JOBS)


@pytest.fixture(scope="module")
def stand_in_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand-in")
    (folder / "manifest.json").write_text(
        '{"kind": "midog bundle", "schema_version": 1, "files": {"w.bin": {"bytes": 7}}}'
    )
    (folder / "w.bin").write_bytes(b"weights")
    return folder


@pytest.fixture
def tried(tmp_path, jobs, stand_in_bundle):
    """Verdicts, by line, on the honest algorithm with `text` put in at `mark`."""

    def run(text="", mark="# BREAK", names=JOBS):
        script = tmp_path / "script.py"
        script.write_text(HONEST.replace(mark, text))
        chosen = [job for job in jobs if job.name in names]
        done = conform(ProcessRunner(script), chosen, stand_in_bundle, tmp_path / "work", lambda _: None, lambda _: [])
        return {verdict.line: verdict for verdict in done.verdicts}, done

    return run


def test_an_honest_algorithm_passes_every_line(tried):
    found, done = tried()
    # `midog predict` is asked for no stand-in's confidences: the empty answer given in its place must be noticed.
    assert {verdict.line for verdict in failures(done.verdicts)} == {"C10"}, verdict_table(done.verdicts)
    assert list(found) == [*CHECKS, *LINES]
    skipped = {line for line, verdict in found.items() if verdict.status == "skip"}
    assert skipped >= {"B5", "B7", "B8"}
    if not ProcessRunner().skips():
        assert skipped == {"B5", "B6", "B7", "B8", "B10", "B12", *LINES}
        assert "out of reach" in found["D1"].detail and "128 MiB" in found["D6"].detail
    assert "start 0.1 s, inference 0.2 s" in found["D11"].detail and "30 MB" in found["D12"].detail
    assert done.times[BASE] > 0 and f"{BASE}, again" in done.times


BROKEN = {
    "integer, files beside, bytes that are no UTF-8": (
        "# CHANGE",
        """
answers[0]["confidence"] = 0
(target / "log.txt").write_text("x")
sys.stdout.buffer.write(bytes([0xE4, 10]))
""",
        {"B1", "B2", "B3", "C3", "C7", "C9", "C10", "D10", "D13", "D15", "E6"},
    ),
    "reversed": ("# BREAK", "values = values[::-1]", {"B3", "C7", "C10"}),
    "never the same, class by another rule, a long line": (
        "# CHANGE",
        """
noise = int.from_bytes(os.urandom(4), "big") * 1e-16
answers = [{"class": "atypical" if i == 1 else "normal", "confidence": v + noise} for i, v in enumerate(values)]
print("x" * 70000)
""",
        {"C4", "C6", "C10", "D3", "D8", "D9", "D10", "D14"},
    ),
    "an entry less": ("# CHANGE", "answers = answers[1:]", {"B1", "B2", "B3", "C1", "C10"}),
    "NaN and another word": (
        "# CHANGE",
        "answers[0] = {'class': 'Atypical', 'confidence': float('nan')}",
        {"B1", "B2", "B3", "C2", "C3", "C5", "C7", "C10", "E6"},
    ),
    "leans on its surroundings": (
        "# BREAK",
        """
values = [v + (Path.cwd() == Path("/usr")) * 1e-3 for v in values]
with open("/tmp/.cache", "x"):
    pass
""",
        {"C10", "D9", "D14", "D13"},
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_rule_fails_on_its_lines_and_no_other(tried, name):
    if ProcessRunner().enclosure is None:
        pytest.skip("needs root, or user namespaces")
    mark, text, lines = BROKEN[name]
    found, _ = tried(text, mark, (BASE, "permuted"))
    assert {verdict.line for verdict in failures(found.values())} == lines, verdict_table(found.values())


def test_an_algorithm_that_answers_nothing_passes_nothing_about_answers(tried):
    found, _ = tried("fail('the answer is no', 3)", names=(BASE,))
    assert not [line for line in found if line[0] in "CE" and found[line].status == "pass"]
    assert found["B1"].detail.startswith(f"{BASE}: status 3, not 0: the answer is no")


def test_failures_without_a_fix_and_wrong_statuses_are_seen(tried):
    found, _ = tried("print(text, file=sys.stderr)", 'print(text + "; fix: mend it", file=sys.stderr)', ("empty", BASE))
    assert found["D13"].status == "fail" and "status 4" not in found["D8"].detail
    found, _ = tried("fail('not one image', 1)", 'fail("not one image", 5)', ("empty", BASE))
    assert found["B9"].status == "fail" and "status 1, not 5" in found["B9"].detail


def test_our_own_entry_point_on_a_tiny_bundle(tmp_path, jobs, tiny_folder):
    """One job, because each is a process that imports torch; all of them: `midog container test`."""
    runner, base = ProcessRunner(), next(job for job in jobs if job.name == BASE)
    usual = Conditions(model=_readable(tiny_folder, tmp_path))
    trial = run_job(runner, BASE, base, tmp_path / "out", usual)
    bundle = open_bundle(tiny_folder)
    predicted = {BASE: predict_what(bundle, base.folder).confidence}
    known = {"threshold": bundle.point.threshold, "predicted": predicted}
    evidence = Evidence(runner, (trial,), trial, {}, {}, {}, STATUS, usual, tmp_path, **known)
    lines = ("B1", "B3", "C1", "C2", "C3", "C4", "C5", "C9", "C10", "D10", "D11", "D12", "E6")
    verdicts = [judge(line, *CHECKS[line], evidence) for line in lines]
    assert {verdict.status for verdict in verdicts} == {"pass", "info"}, verdict_table(verdicts)
    assert "start" in verdicts[10].detail and "MB" in verdicts[11].detail


@pytest.mark.parametrize(("gpu", "apart", "status"), [(False, 0.02, "fail"), (True, 0.02, "pass"), (True, 0.2, "fail")])
def test_half_precision_on_a_gpu_may_differ_and_no_more_than_it_does(tmp_path, jobs, gpu, apart, status):
    base = next(job for job in jobs if job.name == BASE)
    values = np.linspace(0.1, 0.7, base.pages)
    entries = [{TRACK2.class_key: TRACK2.classes[0], TRACK2.confidence_key: value} for value in values]
    trial = Trial(BASE, base, Outcome(0, 1.0, b"", b""), {TRACK2.output_file: json.dumps(entries).encode()})
    runner = EngineRunner(Engine("podman"), "midog:latest", gpu=gpu)
    predicted = {BASE: values + apart}
    evidence = Evidence(runner, (trial,), trial, {}, {}, {}, STATUS, Conditions(), tmp_path, predicted=predicted)
    assert judge("C10", *CHECKS["C10"], evidence).status == status


SHUT = {
    "reached": [], "uid": 1000, "home": "/home/user", "tmp": [], "data": 15 << 30, "processes": 256, "pids": None,
    "read_only": {"/": True, "/usr": True, "/etc": True, "/tmp": False}, "capabilities": "0", "no_new_privileges": "1",
    "shm": 128 << 10, "gpus": [],
}  # fmt: skip
OPEN = SHUT | {
    "reached": [["127.0.0.1", 1]], "uid": 0, "read_only": {**SHUT["read_only"], "/": False}, "data": -1,
    "shm": 8 << 20, "gpus": ["/dev/nvidia0"],
}  # fmt: skip


@pytest.mark.parametrize("line", ["D1", "D2", "D4", "D5", "D6", "D7"])
def test_each_question_about_the_surroundings_has_its_control(tmp_path, jobs, line):
    runner, trial = ProcessRunner(enclosed=False), Trial(BASE, jobs[0], Outcome(0, 1.0, b"", b""), {})

    def found(inside, outside):
        evidence = Evidence(runner, (trial,), trial, {}, inside, outside, STATUS, Conditions(), tmp_path)
        answer = CHECKS[line][1](evidence)
        return answer if isinstance(answer, Verdict) else passed(line, "", not answer, answer)

    turned, same = found(SHUT, OPEN), found(SHUT, SHUT)
    assert turned.status == "pass" and "no control" not in turned.detail
    assert same.status == ("skip" if line == "D1" else "pass") and "control" in same.detail
    assert found(OPEN, OPEN).status == "fail"


def _readable(folder, tmp_path):
    copy = tmp_path / "readable"
    shutil.copytree(folder, copy)
    open_to_all(copy)
    return copy
