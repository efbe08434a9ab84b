"""The errors a person should look at: the most confident wrong answers, as thumbnails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from midog.data.patches import Patch, parse_votes
from midog.errors import MidogError
from midog.report.findings import Findings, Predictions
from midog.report.markup import CLASSES, Section, Thumbnail, thumbnails
from midog.report.text import cell_text

SHOWN = 12
"""Errors shown of each kind."""


def worst_errors(found: Findings) -> Section | None:
    """The most confident errors of each kind, with patch id, truth, confidence and the experts' votes."""
    predictions = found.predictions
    if predictions is None:
        return None
    wrong = predictions.predicted != (predictions.labels == 1)
    if not wrong.any():
        return None
    parts = []
    for truth, heading in ((1, "Atypical, called normal"), (0, "Normal, called atypical")):
        rows = np.flatnonzero(wrong & (predictions.labels == truth))
        sign = 1 if truth == 1 else -1
        order = rows[np.argsort(sign * predictions.confidence[rows], kind="stable")][:SHOWN]
        if len(order):
            items = [_thumbnail(predictions, int(row)) for row in order]
            parts.append(f"<h3>{heading}: {len(rows):,}, the {len(order)} most confident</h3>\n{thumbnails(items)}")
    count = int(wrong.sum())
    text = f"{count:,} of {len(wrong):,} patches are called wrongly. {_split_votes(predictions, wrong)}".strip()
    return Section("Worst errors", text, html="\n".join(parts))


def _thumbnail(predictions: Predictions, row: int) -> Thumbnail:
    patch = predictions.table.patches[row]
    truth = bool(patch.label)
    votes = parse_votes(patch.votes)
    lines = [f"confidence {_confidence(float(predictions.confidence[row]))}"]
    lines += [f"votes: {votes[0]} of {votes[1]} atypical"] if votes else []
    return Thumbnail(_pixels(predictions, patch), patch.patch_id, truth, f"label {CLASSES[int(truth)]}", tuple(lines))


def _confidence(value: float) -> str:
    """Never "1.000" or ".000": a confidence that is not certain is not shown as if it were."""
    if 0 < value < 0.001:
        return "< .001"
    return "> .999" if 0.9995 <= value < 1 else cell_text(value)


def _pixels(predictions: Predictions, patch: Patch) -> NDArray[np.uint8] | None:
    from midog.data.images import read_image

    file: Path = predictions.table.file(patch)
    try:
        return np.asarray(read_image(file), dtype=np.uint8)
    except MidogError:
        return None


def _split_votes(predictions: Predictions, wrong: NDArray[np.bool_]) -> str:
    """How often experts disagreed on the errors, beside all patches; empty where votes are not known."""
    votes = [parse_votes(patch.votes) for patch in predictions.table]
    known = np.array([vote is not None for vote in votes])
    split = np.array([vote is not None and 0 < vote[0] < vote[1] for vote in votes])
    if not (known & wrong).any():
        return ""
    return (
        f"Experts were split on {100 * split[known & wrong].mean():.0f} % of these errors, "
        f"and on {100 * split[known].mean():.0f} % of all patches."
    )
