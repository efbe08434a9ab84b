"""Outputs of several jobs as the platform hands them to the evaluator, and the scores they should get."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midog.files import write_bytes, write_text
from submission.challenge import TRACK2
from submission.evaluate import GROUND_TRUTH_FILE
from submission.trial.trials import Trial

DOMAINS = 3


def write_evaluation(trials: Sequence[Trial], folder: Path) -> Path:
    """Write predictions.json, both keys in every item, ground_truth.json and the outputs; returns the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    jobs, truth = [], []
    for number, trial in enumerate(trials):
        name, key = f"{trial.job.name}.tiff", f"job-{number}"
        jobs.append(_prediction(key, name, trial.outcome.seconds))
        labels = list(trial.job.labels or ())
        truth.append({"image": name, "labels": labels, "tumordomains": domains(number, len(labels))})
        write_bytes(folder / key / "output" / TRACK2.output_file, trial.content or b"")
    write_text(folder / TRACK2.predictions_file, json.dumps(jobs, indent=1))
    write_text(folder / GROUND_TRUTH_FILE, json.dumps(truth, indent=1))
    return folder


def domains(number: int, pages: int) -> list[int]:
    """Tumour domains of one stack's pages: made up, and mixed within a stack."""
    return [(number + page) % DOMAINS for page in range(pages)]


def _prediction(key: str, name: str, seconds: float) -> dict[str, Any]:
    into = {"slug": TRACK2.input_slug, "kind": "Image", "super_kind": "Image", "relative_path": TRACK2.image_folder}
    out = {"slug": TRACK2.output_slug, "kind": "Anything", "super_kind": "File", "relative_path": TRACK2.output_file}
    empty: dict[str, Any] = {"image": None, "file": None, "value": None}
    return {
        "pk": key,
        "status": "Succeeded",
        "exec_duration": f"PT{seconds:.3f}S",
        "invoke_duration": None,
        "inputs": [{**empty, "image": {"name": name}, "socket": into, "interface": into}],
        "outputs": [{**empty, "file": f"/{key}/output/{TRACK2.output_file}", "socket": out, "interface": out}],
    }


def expected_scores(trials: Sequence[Trial]) -> dict[str, float | None]:
    """Every score of the official object under its own keys, `overall_<score>` and `domain_<k> <score>`.

    By their definitions, sharing no code with the evaluator; None where undefined.
    """
    entries = [entry for trial in trials for entry in trial.entries]
    truth = np.array([word == "atypical" for trial in trials for word in trial.job.labels or ()])
    answer = np.array([entry["class"] == "atypical" for entry in entries])
    value = np.array([entry["confidence"] for entry in entries], dtype=np.float64)
    domain = np.array([k for n, trial in enumerate(trials) for k in domains(n, len(trial.job.labels or ()))])
    found = {f"overall_{name}": score for name, score in independent_scores(truth, answer, value).items()}
    for k in np.unique(domain):
        here = domain == k
        apart = independent_scores(truth[here], answer[here], value[here])
        found |= {f"domain_{k} {name}": score for name, score in apart.items()}
    return found


def independent_scores(
    truth: NDArray[np.bool_], answer: NDArray[np.bool_], value: NDArray[np.float64]
) -> dict[str, float | None]:
    """The five scores of (n,) pages: truly atypical, called atypical, P(atypical).

    The ROC AUC counts pairs: an atypical page above a normal one is 1, a tie 1/2 (Mann and Whitney, 1947).
    """
    right = answer == truth
    if truth.all() or not truth.any():
        known = float(right.mean())
        sides = {"sensitivity": known if truth.all() else None, "specificity": None if truth.all() else known}
        return {**sides, "balanced_accuracy": None, "roc_auc": None, "accuracy": known}
    sensitivity, specificity = float(right[truth].mean()), float(right[~truth].mean())
    gaps = value[truth][:, None] - value[~truth][None, :]
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "roc_auc": float((gaps > 0).mean() + (gaps == 0).mean() / 2),
        "accuracy": float(right.mean()),
    }
