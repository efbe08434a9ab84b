"""The output of one job: one object per page, checked by the official evaluator's own conditions and written whole."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from midog.errors import ContractError, MidogError
from midog.files import write_text
from submission.challenge import TRACK2, plain


def make_answers(confidence: ArrayLike, atypical: ArrayLike) -> list[dict[str, Any]]:
    """The challenge's list: one entry per page, `confidence` = P(atypical) whatever the class.

    Args:
        confidence: (n,) float in [0, 1]; not rounded, because rounding ties scores and can contradict the class.
        atypical: (n,) bool.
    """
    values, flags = np.asarray(confidence, dtype=np.float64), np.asarray(atypical, dtype=bool)
    return [
        {TRACK2.class_key: TRACK2.classes[int(flag)], TRACK2.confidence_key: float(value)}
        for value, flag in zip(values, flags, strict=True)
    ]


def official_problems(content: Any, pages: int) -> list[str]:
    """What the official evaluator would raise on, in its order; empty when it accepts the output.

    It asks for a list of objects, one per page, with an exact class word and a confidence that is a JSON float.
    """
    if not isinstance(content, list):
        return [f"the output is {_kind(content)}, not a list"]
    problems = [] if len(content) == pages else [f"{len(content)} entries for {pages} pages"]
    if not content:
        problems.append("the list is empty")
    for index, entry in enumerate(content):
        if not isinstance(entry, dict):
            problems.append(f"entry {index} is {_kind(entry)}, not an object")
            continue
        missing = [key for key in (TRACK2.class_key, TRACK2.confidence_key) if key not in entry]
        if missing:
            problems.append(f"entry {index} lacks {' and '.join(missing)}")
            continue
        if entry[TRACK2.class_key] not in TRACK2.classes:
            problems.append(f"entry {index}: class {plain(entry[TRACK2.class_key])} is not one of {TRACK2.classes}")
        if not isinstance(entry[TRACK2.confidence_key], float):
            problems.append(f"entry {index}: confidence is {_kind(entry[TRACK2.confidence_key])}, not a float")
    return problems


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "an integer"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def own_problems(content: Any) -> list[str]:
    """What the official evaluator lets pass and we do not: confidences outside [0, 1] or not finite."""
    problems = []
    for index, entry in enumerate(content if isinstance(content, list) else []):
        value = entry.get(TRACK2.confidence_key) if isinstance(entry, dict) else None
        if isinstance(value, float) and not (math.isfinite(value) and 0.0 <= value <= 1.0):
            problems.append(f"entry {index}: confidence {value} is not in [0, 1]")
    return problems


def write_answers(folder: Path | str, answers: Sequence[dict[str, Any]], pages: int) -> Path:
    """Validate the answers, write them whole or not at all, read them back. Returns the file's path.

    Raises: ContractError when an entry would be refused, or the folder cannot be written.
    """
    content = list(answers)
    problems = official_problems(content, pages) + own_problems(content)
    if problems:
        raise ContractError("the answers break the challenge's format", "this is a bug: please report it", problems)
    path = Path(folder) / TRACK2.output_file
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    try:
        write_text(path, text)
        path.chmod(0o644)
        written = path.read_text(encoding="utf-8")
    except MidogError as error:
        raise ContractError(error.problem, error.fix) from error
    except OSError as error:
        raise ContractError(
            f"cannot write {path}: {error.strerror or error}", "make the output folder writable for this user"
        ) from error
    if json.loads(written) != content:
        raise ContractError(f"{path} does not hold what was written", "check the disk and run again")
    return path
