"""What a joint or concept head makes of patches that it never saw, kept beside the fold model for the report.

Attention and concept scores are no explanation: nothing here deletes what they point at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from midog.models.classifier import Classifier
from midog.models.heads.concept import CLASSES, ConceptHead
from midog.models.heads.joint import JointHead
from midog.training.patches import FoldPatches

SHOWN, PLOTTED, BATCH = 8, 256, 16
"""Patches shown with their map, patches in the picture of the features, and images per forward."""
WORDS = ("normal", "atypical")


def head_maps(classifier: Classifier, patches: FoldPatches) -> dict[str, Any] | None:
    """Plain JSON: `ids` and `attention` (n, h, w), or `concepts` and `scores` (n, concepts), of a few left-out patches;
    `plotted` ids with the first two principal components of the features `before` and `after` the head. None for a
    head that has neither, and where nothing is finite.
    """
    head = classifier.head
    if not isinstance(head, JointHead | ConceptHead) or not len(patches.left_out_ids):
        return None
    rows = np.unique(np.linspace(0, len(patches.left_out_ids) - 1, PLOTTED).round().astype(np.int64))
    shown = np.unique(np.linspace(0, len(rows) - 1, SHOWN).round().astype(np.int64))
    parts = []
    classifier.eval()
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            x = classifier.prepare(np.asarray(patches.left_out[rows[start : start + BATCH]]))
            parts.append([part.float().cpu().numpy() for part in _seen(head, classifier.look(x))])
    before, after, maps = (np.concatenate(part) for part in zip(*parts, strict=True))
    if not all(np.isfinite(part).all() for part in (before, after, maps)):
        return None
    ids = [patches.left_out_ids[row] for row in rows]
    found: dict[str, Any] = {"kind": classifier.network.head.kind, "crop": classifier.network.image.crop}
    found |= {"ids": [ids[at] for at in shown], "plotted": ids}
    found |= {"before": _components(before), "after": _components(after)}
    if isinstance(head, JointHead):
        return {**found, "attention": maps[shown].round(6).tolist()}
    counts = [len(head.get_buffer(name)) for name in CLASSES]
    concepts = [f"{word} {at + 1}" for word, count in zip(WORDS, counts, strict=True) for at in range(count)]
    anchors = "prototypes" if head.settings.anchors == "prototypes" else "text"
    return {**found, "anchors": anchors, "concepts": concepts, "scores": maps[shown].round(3).tolist()}


def _seen(head: JointHead | ConceptHead, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features before and after the head, and its map, of a batch."""
    if isinstance(head, JointHead):
        return given[:, 0], head.vector(given), head.attend(given)
    return given, head.vector(given), head.scores(given)


def _components(x: NDArray[np.float32]) -> list[list[float]]:
    """The first two principal components of each row, in units of the first one's deviation."""
    centred = x.astype(np.float64) - x.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    flat = np.zeros((len(x), 2))
    flat[:, : min(2, len(s))] = (u * s)[:, :2]
    deviation = flat[:, 0].std()
    rounded: list[list[float]] = (flat / deviation if deviation > 0 else flat).round(4).tolist()
    return rounded
