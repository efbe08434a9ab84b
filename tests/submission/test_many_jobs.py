"""Hundreds of random stacks: each output read by a validator of its own, every score counted by hand to 1e-9."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from midog.bundle import Bundle, open_bundle, pack
from submission.challenge import TRACK2
from submission.evaluate import evaluate_folder
from submission.inference import answer
from submission.stack import read_job
from submission.trial.jobs import Job, draw_patches
from submission.trial.many import PATCHES, WRITERS, judge_many, judge_trials, random_jobs, served
from submission.trial.rehearsal import write_evaluation
from submission.trial.runners import Conditions, Outcome, ProcessRunner
from submission.trial.trials import STATUS, Evidence, Trial
from submission.trial.variants import lay_out

JOBS = 200
USE = "full/1"
"""All members and fold models, one view: a quarter of the time."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_blend: Path, tiny_folder: Path) -> Bundle:
    """The tiny bundle with its threshold amid the patches' confidences, so that both classes are called."""
    place = tmp_path_factory.mktemp("many")
    blend = json.loads((tiny_blend / "blend.json").read_text())
    found = open_bundle(tiny_folder, USE).predict(draw_patches(PATCHES)[0]).confidence
    blend["points"][USE]["threshold"] = float(np.sort(found)[PATCHES // 2 - 1 : PATCHES // 2 + 1].mean())
    shutil.copytree(tiny_blend, place / "blend")
    (place / "blend" / "blend.json").write_text(json.dumps(blend))
    return open_bundle(lay_out(pack(place / "blend", place / "model.tar.gz"), place / "model"), USE)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, ...]:
    return random_jobs(tmp_path_factory.mktemp("many-jobs") / "jobs", JOBS)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle, jobs: tuple[Job, ...]) -> Evidence:
    """All jobs answered by the server as the platform starts it; by its handler where no process can be shut in."""
    runner, folder = ProcessRunner(), tmp_path_factory.mktemp("many-out")
    usual = Conditions(model=bundle.folder, environment={TRACK2.use_variable: USE})
    trials = served(runner, usual, jobs) if runner.enclosure else tuple(_handled(job, bundle, folder) for job in jobs)
    known = {"threshold": bundle.point.threshold}
    return Evidence(runner, trials, trials[0], {}, {}, {}, STATUS, usual, folder, **known)


def _handled(job: Job, bundle: Bundle, folder: Path) -> Trial:
    answer(job.folder, folder / job.name, lambda: bundle)
    files = {path.name: path.read_bytes() for path in (folder / job.name).iterdir()}
    return Trial(job.name, job, Outcome(0, 0.0, b"", b""), files)


def test_the_stacks_are_what_they_announce_and_of_every_kind(jobs: tuple[Job, ...], tmp_path: Path) -> None:
    patches, labels = draw_patches(PATCHES)
    for job in jobs:
        pages = read_job(job.folder).pages
        assert len(pages) == job.pages == len(job.shows)
        assert all(np.array_equal(page, patches[i]) for page, i in zip(pages, job.shows, strict=True)), job.name
        assert job.labels == tuple(TRACK2.classes[labels[i]] for i in job.shows)
    assert {job.name.split("-", 2)[2] for job in jobs} == {*WRITERS}
    assert {job.pages for job in jobs} == {*range(1, 17)}
    assert {path.suffix for job in jobs for path in job.folder.glob("images/*/*")} == {".tif", ".tiff", ".TIF", ".mha"}
    listed = [json.loads(path.read_text())[0] for job in jobs if (path := job.folder / "inputs.json").is_file()]
    assert {frozenset({"socket", "interface"} & set(item)) for item in listed} == {
        frozenset({"interface"}),
        frozenset({"socket", "interface"}),
        frozenset({"socket"}),
    }
    assert 0 < len(listed) < JOBS
    few = random_jobs(tmp_path, 3)
    for before, after in zip(jobs, few, strict=False):
        files = [sorted(path for path in job.folder.rglob("*") if path.is_file()) for job in (before, after)]
        assert [a.read_bytes() for a in files[0]] == [b.read_bytes() for b in files[1]]


def test_every_answer_is_valid_and_the_verdict_says_how_many(evidence: Evidence) -> None:
    assert len(evidence.trials) == JOBS
    called = set()
    for trial in evidence.trials:
        assert list(trial.files) == ["multiple-mitotic-figure-classification.json"]
        entries = json.loads(trial.files["multiple-mitotic-figure-classification.json"], parse_constant=pytest.fail)
        assert type(entries) is list and len(entries) == trial.job.pages
        for entry in entries:
            assert set(entry) == {"class", "confidence"}
            assert type(entry["confidence"]) is float and 0.0 <= entry["confidence"] <= 1.0
            called.add(entry["class"])
    assert called == {"normal", "atypical"}
    verdict = judge_trials(evidence)
    assert verdict.status == "pass", verdict.detail
    assert verdict.detail.startswith(f"{JOBS} stacks, {sum(trial.job.pages for trial in evidence.trials)} pages, 20 ")


def test_every_score_is_the_one_counted_by_hand(evidence: Evidence, tmp_path: Path) -> None:
    folder = write_evaluation(evidence.trials, tmp_path / "evaluation")
    found = evaluate_folder(folder, draws=0).metrics()["aggregates"]
    groups = _pages_by_domain(folder)
    assert set(found) == {f"overall_{key}" for key in TRACK2.overall_keys} | {f"domain_{k}" for k in groups if k != ""}
    for key, value in _count(groups[""]).items():
        assert found[f"overall_{key}"] == pytest.approx(value, abs=1e-9)
    for name in set(groups) - {""}:
        expected = _count(groups[name])
        assert set(found[f"domain_{name}"]) == set(expected)
        for key, value in expected.items():
            assert found[f"domain_{name}"][key] == pytest.approx(value, abs=1e-9), (name, key)


def _pages_by_domain(folder: Path) -> dict[object, list[tuple[bool, bool, float]]]:
    """(atypical, called atypical, confidence) of every page, joined from the files alone; "" holds all of them."""
    truth = {entry["image"]: entry for entry in json.loads((folder / "ground_truth.json").read_text())}
    groups: dict[object, list[tuple[bool, bool, float]]] = {"": []}
    for job in json.loads((folder / "predictions.json").read_text()):
        known = truth[job["inputs"][0]["image"]["name"]]
        path = folder / job["pk"] / "output" / job["outputs"][0]["interface"]["relative_path"]
        rows = zip(json.loads(path.read_text()), known["labels"], known["tumordomains"], strict=True)
        for entry, label, domain in rows:
            page = (label == "atypical", entry["class"] == "atypical", entry["confidence"])
            groups[""].append(page)
            groups.setdefault(domain, []).append(page)
    return groups


def _count(pages: list[tuple[bool, bool, float]]) -> dict[str, float]:
    """The five scores; the area under the curve by the trapezoids below the curve itself."""
    positive = sum(truth for truth, _, _ in pages)
    negative = len(pages) - positive
    sensitivity = sum(truth and call for truth, call, _ in pages) / positive
    specificity = sum(not truth and not call for truth, call, _ in pages) / negative
    area = right = up = 0.0
    for value in sorted({value for _, _, value in pages}, reverse=True):
        tied = [truth for truth, _, other in pages if other == value]
        step_up, step_right = sum(tied) / positive, (len(tied) - sum(tied)) / negative
        area += step_right * (up + step_up / 2)
        up, right = up + step_up, right + step_right
    assert up == pytest.approx(1) and right == pytest.approx(1)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "roc_auc": area,
        "accuracy": sum(truth == call for truth, call, _ in pages) / len(pages),
    }


BROKEN = {
    "an integer": (lambda entries: [{**entries[0], "confidence": 0}, *entries[1:]], "an integer, not a float"),
    "an entry less": (lambda entries: entries[1:], "entries for"),
    "reversed": (lambda entries: entries[::-1], "has 0."),
    "the other class": (
        lambda entries: [{**entries[0], "class": TRACK2.classes[entries[0]["class"] == "normal"]}, *entries[1:]],
        "threshold",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_wrong_answer_among_many_is_seen(evidence: Evidence, tmp_path: Path, name: str) -> None:
    change, words = BROKEN[name]
    which = next(i for i, trial in enumerate(evidence.trials) if i and trial.job.pages == 16)
    trials = list(evidence.trials[: which + 1])
    files = {TRACK2.output_file: json.dumps(change(trials[which].entries)).encode()}
    trials[which] = replace(trials[which], files=files)
    verdict = judge_trials(replace(evidence, trials=tuple(trials), folder=tmp_path))
    assert verdict.status == "fail" and words in verdict.detail, verdict


def test_a_stack_the_server_refuses_is_told_with_its_reason(evidence: Evidence, tmp_path: Path) -> None:
    jobs = random_jobs(tmp_path / "jobs", 3)
    next(jobs[1].folder.glob("images/*/*")).write_bytes(b"II*\0")
    verdict = judge_many(replace(evidence, folder=tmp_path), jobs)
    if "F" in evidence.runner.skips():
        assert verdict.status == "skip"
        return
    assert verdict.status == "fail" and verdict.detail.startswith(f"{jobs[1].name}: status 1, not 0: ")
    assert "; fix: " in verdict.detail
