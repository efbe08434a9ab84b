"""Hundreds of random stacks, answered by one server: each output valid, every score as computed independently.

A process for each job would take minutes for what the check-list shows already; the invoke flavour is as real a path.
"""

from __future__ import annotations

import base64
import shutil
import statistics
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from submission.challenge import TRACK2
from submission.trial import output_checks as output
from submission.trial.invocation import ANSWERED, drive
from submission.trial.jobs import SHAPES, Job, Maker, Pixels, draw_patches, open_to_all, pictures, save_pages, write_mha
from submission.trial.odd_tiffs import plain_page, planar_page, tiled_page, write_tiff
from submission.trial.runners import Conditions, Outcome, Runner
from submission.trial.trials import Evidence, Trial
from submission.verdict import Verdict

LINE, WHAT = "E2", "random stacks: valid answers, scores by an independent computation"
PATCHES = 32
"""Patches that are drawn where none are given."""
CALL_SECONDS = 60.0
"""Added to the time limit for each stack."""

WRITERS: Mapping[str, Callable[[Path, Pixels], object]] = {
    "deflate": lambda path, pages: save_pages(path, pictures(pages)),
    "lzw": lambda path, pages: save_pages(path, pictures(pages), "tiff_lzw"),
    "uncompressed": lambda path, pages: save_pages(path, pictures(pages), None),
    "planar": lambda path, pages: write_tiff(path, [planar_page(page) for page in pages]),
    "tiled": lambda path, pages: write_tiff(path, [tiled_page(page, 48) for page in pages]),
    "bigtiff": lambda path, pages: write_tiff(path, [plain_page(page) for page in pages], big=True),
    "rgb16": lambda path, pages: write_tiff(path, [plain_page(page.astype(np.uint16) * 257) for page in pages]),
    "rgb-float": lambda path, pages: write_tiff(path, [plain_page(page.astype(np.float32) / 255) for page in pages]),
    "mha": lambda path, pages: write_mha(path, pages, True),
    "mha-colours": lambda path, pages: write_mha(path, pages, False),
}
"""Kind of file → how it is written; none changes a pixel, so that a patch has one confidence in all of them."""


def random_jobs(
    folder: Path, count: int, patches: Pixels | None = None, labels: ArrayLike | None = None, seed: int = 0
) -> tuple[Job, ...]:
    """Write `count` jobs below `folder`, which is emptied first.

    Each has 1 to 16 pages, drawn with replacement, in a file of a random kind and name.

    Args:
        patches: (n, 128, 128, 3) uint8; None: drawn ones.
        labels: (n,) 0 normal, 1 atypical, of `patches`; None: not known.
        seed: the same one gives the same bytes.
    """
    if patches is None:
        patches, labels = draw_patches(PATCHES)
    words = None if labels is None else tuple(TRACK2.classes[int(label)] for label in np.asarray(labels))
    shutil.rmtree(folder, ignore_errors=True)
    maker, rng, made = Maker(folder, patches, words), np.random.default_rng(seed), []
    for number in range(count):
        kind, shape = str(rng.choice([*WRITERS])), str(rng.choice([*SHAPES, ""]))
        suffix = ".mha" if kind.startswith("mha") else str(rng.choice([".tif", ".tiff", ".TIF"]))
        which = [int(i) for i in rng.integers(len(patches), size=rng.integers(1, TRACK2.pages + 1))]
        stem = str(uuid.UUID(bytes=rng.bytes(16), version=4))

        def fill(path: Path, kind: str = kind, which: Sequence[int] = which) -> object:
            return WRITERS[kind](path, maker.some(*which))

        name = f"random-{number:03d}-{kind}"
        made.append(maker.job(name, LINE, fill, which, shape=shape, suffix=suffix, stem=stem))
    open_to_all(folder)
    return tuple(made)


def judge_many(evidence: Evidence, jobs: Sequence[Job]) -> Verdict:
    """Have one server answer `jobs`, and judge every output and the scores of all together."""
    why = evidence.runner.skips().get("F")
    if why:
        return Verdict(LINE, WHAT, "skip", why)
    trials = served(evidence.runner, evidence.usual, jobs)
    if not trials:
        return Verdict(LINE, WHAT, "fail", "the server could not be driven")
    return judge_trials(replace(evidence, trials=trials, base=trials[0], variants={}, folder=evidence.folder / "many"))


def judge_trials(evidence: Evidence) -> Verdict:
    """The verdict on trials that were run already; what the official evaluator reads stays in `folder`/evaluation."""
    checks = (_as_due, output.nothing_else, output.threshold_rule, output.evaluated)
    findings = [check(evidence) for check in checks]
    fault = output.first([found for found in findings if isinstance(found, str)])
    if fault:
        return Verdict(LINE, WHAT, "fail", fault)
    joined = findings[-1]
    assert isinstance(joined, Verdict)
    median = statistics.median(trial.outcome.seconds for trial in evidence.trials)
    return Verdict(LINE, WHAT, joined.status, f"{joined.detail}; median {median:.2f} s a stack")


def _as_due(evidence: Evidence) -> output.Finding:
    """Every stack is answered as the challenge asks, and a patch the same in all of them."""
    return output.first([*map(output.fault, evidence.trials), *output.unlike(evidence, evidence.trials)])


def served(runner: Runner, conditions: Conditions, jobs: Sequence[Job]) -> tuple[Trial, ...]:
    """One server's answers to jobs that lie in one folder; none where it could not be driven."""
    limit = conditions.time_limit + CALL_SECONDS * len(jobs)
    names = [job.folder.name for job in jobs]
    seen = drive(runner, replace(conditions, time_limit=limit), jobs[0].folder.parent, names)
    if not seen:
        return ()
    calls = zip(jobs, seen["calls"], strict=True)
    return tuple(_trial(job, code, seconds, files, seen["said"]) for job, (code, seconds, files) in calls)


def _trial(job: Job, code: int | None, seconds: float, files: Mapping[str, str], said: str) -> Trial:
    answered = code == ANSWERED
    outcome = Outcome(0 if answered else 1, seconds, b"", b"" if answered else said.encode())
    return Trial(job.name, job, outcome, {name: base64.b64decode(content) for name, content in files.items()})
