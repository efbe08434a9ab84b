"""Lines B, C and E of the check-list: is each job answered as it should be, and what is in the answers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from midog.errors import MidogError
from submission.answers import official_problems, own_problems
from submission.challenge import TRACK2, plain
from submission.evaluate import evaluate_folder
from submission.trial.rehearsal import expected_scores, write_evaluation
from submission.trial.trials import Evidence, Trial
from submission.verdict import Status, Verdict

AGREEMENT = 1e-9
"""Between the scores of the evaluator and an independent computation."""

UNANSWERED = "no job was answered"

Finding = str | Verdict
"""What is wrong, "" for nothing; or a whole verdict where that is not all there is to say."""
Check = Callable[[Evidence], Finding]


def say(status: Status, detail: str) -> Verdict:
    """A verdict whose line is not known yet."""
    return Verdict("", "", status, detail)


def first(faults: Iterable[str]) -> str:
    """The first fault, and how many more there are."""
    found = [fault for fault in faults if fault]
    return f"{found[0]}{f'; and {len(found) - 1} more' if len(found) > 1 else ''}" if found else ""


def fault(trial: Trial) -> str:
    """What is wrong with the way one job was answered, or refused."""
    job, outcome = trial.job, trial.outcome
    if outcome.timed_out:
        return f"{trial.name}: not done after {outcome.seconds:.0f} s"
    if outcome.status != job.status:
        return f"{trial.name}: status {outcome.status}, not {job.status}: {plain(outcome.last_line)}"
    if job.warns and not outcome.stderr.strip():
        return f"{trial.name}: no warning on stderr"
    if job.pages is None:
        return "" if outcome.last_line else f"{trial.name}: failed without a word on stderr"
    if trial.entries is None:
        return f"{trial.name}: no {TRACK2.output_file}, or no JSON in it"
    problems = official_problems(trial.entries, job.pages) + own_problems(trial.entries)
    return f"{trial.name}: {problems[0]}" if problems else ""


def inputs(line: str) -> Check:
    """Every job for `line` is answered as it should be, with the values its patches have elsewhere."""
    return lambda evidence: first([*map(fault, evidence.serving(line)), *unlike(evidence, evidence.serving(line))])


def unlike(evidence: Evidence, trials: Sequence[Trial]) -> list[str]:
    """Pages that show a patch unchanged and got another confidence than the same patch in the first job with it."""
    known: dict[int, tuple[float, str]] = {}
    for trial in (evidence.base, *evidence.trials):
        for patch, value in _shown(trial):
            known.setdefault(patch, (value, trial.name))
    faults = []
    for trial in trials:
        off = [
            (patch, value)
            for patch, value in _shown(trial)
            if not abs(value - known[patch][0]) <= evidence.runner.tolerance
        ]
        if off:
            (patch, value), (other, where) = off[0], known[off[0][0]]
            faults.append(f"{trial.name}: patch {patch} has {value:.6f}, in {where} {other:.6f}")
    return faults


def _shown(trial: Trial) -> list[tuple[int, float]]:
    values = trial.confidence
    if values is None:
        return []
    return [(patch, float(value)) for patch, value in zip(trial.job.shows, values, strict=True) if patch >= 0]


def on_all(problem: Callable[[Trial], str]) -> Check:
    """The first problem among all jobs that should be answered."""

    def check(evidence: Evidence) -> Finding:
        due = [trial for trial in evidence.trials if trial.job.pages is not None]
        if not evidence.answered:
            return UNANSWERED
        found = first([f"{trial.name}: {text}" for trial in due if (text := problem(trial))])
        return found or say("pass", f"{len(due)} jobs")

    return check


def list_of_objects(trial: Trial) -> str:
    entries = trial.entries
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return "no list of objects"
    return "" if len(entries) == trial.job.pages else f"{len(entries)} entries for {trial.job.pages} pages"


def class_words(trial: Trial) -> str:
    wrong = [entry.get(TRACK2.class_key) for entry in _objects(trial)]
    wrong = [word for word in wrong if word not in TRACK2.classes]
    return f"class {plain(wrong[0])}" if wrong else ""


def floats(trial: Trial) -> str:
    for number, entry in enumerate(_objects(trial)):
        value = entry.get(TRACK2.confidence_key)
        if not isinstance(value, float) or not math.isfinite(value) or not 0 <= value <= 1:
            return f"entry {number}: confidence {plain(json.dumps(value))}"
    return ""


def no_nan(trial: Trial) -> str:
    found = re.search(rb"NaN|Infinity", trial.content or b"")
    return f"{found[0].decode()} in the text" if found else ""


def nothing_else(evidence: Evidence) -> Finding:
    if not evidence.answered:
        return UNANSWERED
    extra = [(trial.name, name) for trial in evidence.all for name in trial.files if name != TRACK2.output_file]
    return first([f"{trial}: {plain(name)}" for trial, name in extra])


def _objects(trial: Trial) -> list[dict[str, Any]]:
    entries = trial.entries
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def threshold_rule(evidence: Evidence) -> Finding:
    """The class is atypical exactly from one confidence on: the bundle's threshold, or any single one."""
    if not evidence.answered:
        return UNANSWERED
    atypical: list[float] = []
    normal: list[float] = []
    for trial in evidence.answered:
        for entry in _objects(trial):
            value, word = entry.get(TRACK2.confidence_key), entry.get(TRACK2.class_key)
            if isinstance(value, float) and math.isfinite(value) and word in TRACK2.classes:
                (atypical if word == TRACK2.atypical else normal).append(value)
    low, high = min(atypical, default=math.inf), max(normal, default=-math.inf)
    counts = f"{len(atypical)} atypical, {len(normal)} normal"
    if evidence.threshold is None:
        return "" if low > high else f"normal at {high:.6f}, atypical at {low:.6f}: no threshold does that"
    if low < evidence.threshold or high >= evidence.threshold:
        return f"threshold {evidence.threshold:.6f}, but atypical from {low:.6f}, normal up to {high:.6f}"
    return say("pass", f"{counts}, threshold {evidence.threshold:.4f}")


def same_answer(*names: str) -> Check:
    """The base job under another condition gives the same bytes."""

    def check(evidence: Evidence) -> Finding:
        tried = [evidence.variants[name] for name in names if name in evidence.variants]
        return first([_other_bytes(evidence, trial) for trial in tried]) if tried else say("skip", "was not run")

    return check


def _other_bytes(evidence: Evidence, trial: Trial) -> str:
    if trial.outcome.status != 0:
        return f"{trial.name}: status {trial.outcome.status}: {plain(trial.outcome.last_line)}"
    same = trial.content is not None and trial.content == evidence.base.content
    return "" if same else f"{trial.name}: other bytes than in the first run"


def order(evidence: Evidence) -> Finding:
    """Permuted pages get permuted entries, and a page alone gets what it gets among others."""
    trials = [trial for trial in evidence.serving("C7") if trial.confidence is not None]
    if not trials:
        return say("skip", "no permuted job was answered")
    single = [trial for trial in evidence.trials if trial.job.pages == 1]
    values = dict(_shown(trials[0]))
    spread = max(values.values()) - min(values.values())
    found = first(unlike(evidence, [*trials, *single]))
    if not found and spread <= 2 * evidence.runner.tolerance:
        return say("warn", "all pages have the same confidence: their order cannot be told")
    return found or say("pass", f"{len(values)} pages permuted, {len(single)} jobs of one page")


def extremes(evidence: Evidence) -> Finding:
    trials = evidence.serving("C8")
    return first(map(fault, trials)) if trials else say("skip", "no job for it")


def as_predicted(evidence: Evidence) -> Finding:
    """The same confidences as `midog predict` gives for the same job folders."""
    if not evidence.predicted:
        return say("skip", "no bundle to predict with")
    worst = 0.0
    for trial in evidence.trials:
        expected = evidence.predicted.get(trial.job.name)
        if expected is not None:
            found = trial.confidence
            if found is None or len(found) != len(expected):
                return f"{trial.name}: {len(expected)} confidences by midog predict, none or others here"
            worst = max(worst, float(np.abs(found - expected).max()))
    count = f"{len(evidence.predicted)} jobs, largest difference {worst:.1e}"
    return say("pass" if worst <= evidence.runner.tolerance else "fail", count)


def evaluated(evidence: Evidence) -> Finding:
    """Outputs joined as the platform does it, scored as the challenge does it, against an independent computation."""
    trials = [trial for trial in evidence.answered if trial.job.labels is not None and trial.confidence is not None]
    if not trials:
        return say("skip", "no labels are known")
    joined = write_evaluation(trials, evidence.folder / "evaluation")
    try:
        evaluation = evaluate_folder(joined, draws=0)
    except MidogError as error:
        return first([*error.details, error.problem])
    if evaluation.problems:
        return first(map(str, evaluation.problems))
    expected, found = expected_scores(trials), _by_name(evaluation.metrics()["aggregates"])
    if set(found) != set(expected):
        return f"scores of {', '.join(sorted(set(found) ^ set(expected)))} on one side alone"
    off = [name for name, value in expected.items() if not _equal(found[name], value)]
    if off:
        return first([f"{name} {found[name]}, independently {expected[name]}" for name in off])
    return say("pass", f"{len(trials)} stacks, {sum(len(t.job.shows) for t in trials)} pages, {len(expected)} scores")


def _by_name(aggregates: Mapping[str, Any]) -> dict[str, float | None]:
    """The official object without its nesting: `overall_<score>`, `domain_<k> <score>`."""
    flat: dict[str, float | None] = {}
    for name, value in aggregates.items():
        flat |= {f"{name} {key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _equal(one: float | None, other: float | None) -> bool:
    return one is other if one is None or other is None else abs(one - other) <= AGREEMENT
