"""Prototype anchors of a concept head: what the frozen backbone makes of the fold's own training cases.

There is no language prior in them. They come from training cases alone: neither the fold that is left out nor inner
cases that choose the epoch are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from midog.errors import DataError
from midog.models.classifier import Classifier, Measure
from midog.models.features import pooled_features
from midog.models.heads.concept import CLASSES, PROTOTYPES, Concept
from midog.training.machine import Resources
from midog.training.member import Member, network_of
from midog.training.patches import FoldPatches, Rows
from midog.training.seeds import generator_of

ROUNDS = 100
"""Rounds of k-means at most."""
STARTS = 4
"""Starts of k-means, of which the tightest counts."""


def prototypes_of(
    member: Member, k: int, patches: FoldPatches, resources: Resources, limit: int | None = None
) -> Measure | None:
    """What makes the head's prototypes of a backbone; None for a head that has none. `limit` patches of each class."""
    if not isinstance(member.head, Concept) or member.head.anchors != PROTOTYPES:
        return None
    return partial(_measure, member=member, k=k, patches=patches, resources=resources, limit=limit)


def _measure(
    backbone: nn.Module, member: Member, k: int, patches: FoldPatches, resources: Resources, limit: int | None
) -> Mapping[str, Tensor]:
    assert isinstance(member.head, Concept)
    number, drawn = member.head.clusters, []
    for label, word in enumerate(("normal", "atypical")):
        rows = np.flatnonzero(patches.labels == label)[:limit]
        if len(rows) < number:
            raise DataError(
                f"{len(rows)} {word} training patches of fold {k} cannot make {number} prototypes",
                f"--set members.{member.name}.head.clusters={max(1, len(rows))}, or more patches",
            )
        drawn.append(rows)
    samples, sizes = patches.samples, [len(rows) for rows in drawn]
    with torch.random.fork_rng(devices=[]):
        classifier = Classifier(network_of(member), backbone)
    images = Rows(samples.images, samples.rows[np.concatenate(drawn)])
    features = pooled_features(classifier, images, resources.device, label=f"{member.name} fold {k}, prototypes")
    backbone.to("cpu")
    classes = np.split(features, [sizes[0]])
    middle = features.mean(axis=0, dtype=np.float64)
    found = {}
    for name, x in zip(CLASSES, classes, strict=True):
        found[name] = class_prototypes(x, middle, number, generator_of(member.seed, member.name, k, f"anchors {name}"))
    return found


def class_prototypes(
    features: NDArray[np.float32], middle: NDArray[np.float64], number: int, rng: np.random.Generator
) -> Tensor:
    """k-means centroids of a class, as directions from the `middle` of all training features.

    That, and their length of 1, are our choice: what all patches share says nothing about a class.

    Returns: (number, width) float32, values that half precision holds.
    """
    directions = kmeans(features.astype(np.float64), number, rng) - middle
    lengths = np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    return torch.from_numpy(directions / lengths).to(torch.float16).to(torch.float32)


def kmeans(x: NDArray[np.float64], number: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Centroids (number, width) of Lloyd's k-means from k-means++ starts, the same for the same generator.

    Not scikit-learn's: its threads add up in the order in which they finish. Where there are fewer distinct rows than
    centroids, some coincide.
    """
    best, least = x[:number], np.inf
    for _ in range(STARTS):
        centres = _spread(x, number, rng)
        for _ in range(ROUNDS):
            nearest = _distances(x, centres).argmin(axis=1)
            after = centres.copy()
            for at in np.unique(nearest):
                after[at] = x[nearest == at].mean(axis=0)
            if np.array_equal(after, centres):
                break
            centres = after
        spread = float(_distances(x, centres).min(axis=1).sum())
        if spread < least:
            best, least = centres, spread
    return best


def _spread(x: NDArray[np.float64], number: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """k-means++ (Arthur & Vassilvitskii 2007): each next centre is drawn by its squared distance from those before."""
    centres = [x[rng.integers(len(x))]]
    while len(centres) < number:
        squared = _distances(x, np.stack(centres)).min(axis=1)
        total = squared.sum()
        centres.append(x[rng.choice(len(x), p=squared / total) if total > 0 else rng.integers(len(x))])
    return np.stack(centres)


def _distances(x: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances (n, k)."""
    squared = (x**2).sum(axis=1)[:, None] - 2 * x @ centres.T + (centres**2).sum(axis=1)
    return np.asarray(np.maximum(squared, 0))
