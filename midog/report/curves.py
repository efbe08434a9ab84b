"""What the figures show, as arrays: ROC, balanced accuracy over thresholds, intervals of shares. numpy only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Z95 = 1.959963984540054


def roc_points(label: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats]:
    """(false positive rate, sensitivity) at every threshold of `score`, from (0, 0) to (1, 1); ties are one step."""
    y, s = np.asarray(label) == 1, np.asarray(score, dtype=np.float64)
    order = np.argsort(-s, kind="stable")
    y, s = y[order], s[order]
    last = np.append(np.flatnonzero(np.diff(s)), len(s) - 1)
    positive, negative = np.cumsum(y)[last], np.cumsum(~y)[last]
    return (
        np.concatenate([[0.0], negative / max(int((~y).sum()), 1)]),
        np.concatenate([[0.0], positive / max(int(y.sum()), 1)]),
    )


def wilson(found: float, n: float) -> tuple[float, float]:
    """95 % interval of a share. Source: Wilson 1927, JASA 22:209."""
    share, square = found / n, Z95**2 / n
    middle = (share + square / 2) / (1 + square)
    half = Z95 * math.sqrt(share * (1 - share) / n + square / (4 * n)) / (1 + square)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def balanced_accuracy_curve(label: ArrayLike, confidence: ArrayLike) -> tuple[Floats, Floats]:
    """(threshold, balanced accuracy) where atypical iff confidence ≥ threshold, thresholds ascending."""
    y, p = np.asarray(label) == 1, np.asarray(confidence, dtype=np.float64)
    levels = np.unique(p)
    positive, negative = np.sort(p[y]), np.sort(p[~y])
    sensitivity = 1 - np.searchsorted(positive, levels, "left") / max(len(positive), 1)
    specificity = np.searchsorted(negative, levels, "left") / max(len(negative), 1)
    return levels, (sensitivity + specificity) / 2


def flat_top(threshold: ArrayLike, accuracy: ArrayLike, within: float = 0.01) -> tuple[float, float]:
    """The stretch of thresholds around the maximum in which at most `within` of balanced accuracy is lost."""
    t, a = np.asarray(threshold, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    top = int(np.argmax(a))
    below = np.flatnonzero(a < a[top] - within)
    left, right = below[below < top], below[below > top]
    return float(t[left[-1] + 1 if len(left) else 0]), float(t[right[0] - 1 if len(right) else -1])
