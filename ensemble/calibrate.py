"""Shift, temperature and threshold of an operating point.

confidence = sigmoid((z - shift) / temperature) has two parameters because balanced sampling shifts logits, which a
temperature alone cannot undo. The threshold maximises balanced accuracy, whose out-of-fold curve is flat and noisy
near its top: its maximum is taken after smoothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.errors import DataError

Floats = NDArray[np.float64]

BANDWIDTH = 2.0
"""Kernel width in units of Silverman's rule. Our choice, from simulated logits (normal, skewed, heavy-tailed; 300,
1,500 and 6,000 patches with a fifth atypical): the threshold then costs 0.10, 0.03 and 0.01 points of balanced
accuracy against the best possible one, where the top of the raw curve costs 0.57, 0.21 and 0.08."""
BINS = 1024
STEEPEST, FLATTEST = 1e4, 1e-2
"""Limits of the slope on standardised logits: a member that knows nothing gets a flat curve, never a falling one."""
ACROSS_LEAST = 10
"""Patches of each class that a domain needs to have a say in `threshold: across` (our choice)."""
NEWTON_STEPS = 100
CONVERGED = 1e-18
"""Newton stops when a step would gain less than this per patch: parameters are then right to about 1e-9."""
LOSS_CONVERGED = 1e-11
"""The same where only the loss matters: that is then right to about 1e-11."""


@dataclass(frozen=True)
class Calibration:
    """confidence = sigmoid((z - shift) / temperature); temperature > 0, so the order of patches never changes."""

    shift: float
    temperature: float

    def scale(self, z: ArrayLike) -> Floats:
        """Calibrated logits (z - shift) / temperature."""
        return (np.asarray(z, dtype=np.float64) - self.shift) / self.temperature


def fit_calibration(z: ArrayLike, label: ArrayLike) -> Calibration:
    """Shift and temperature by maximum likelihood.

    `z` (n,) finite logits of atypical, `label` (n,) 0 or 1. The targets are pulled in from 0 and 1 by one
    pseudo-patch of each class, so that separable logits do not end in an infinite slope.

    Source: Platt 1999, Probabilistic outputs for support vector machines, section 2; Newton steps: our choice.
    Raises: DataError when a class is absent or a logit is not finite.
    """
    z, y = _both_classes(z, label)
    x, centre, spread = _standardised(z)
    target = _targets(y)
    slope, intercept, _ = _newton(x, target)
    if not FLATTEST <= slope <= STEEPEST:
        slope = min(max(slope, FLATTEST), STEEPEST)
        _, intercept, _ = _newton(x, target, fixed=slope)
    return Calibration(shift=centre - intercept * spread / slope, temperature=spread / slope)


def calibrated_loss(label: ArrayLike, like: ArrayLike) -> Callable[[Floats], float]:
    """The mean log-loss that logits (n,) have after the shift and temperature that suit them best.

    Targets are those of `fit_calibration`. The logits `like` tell where to begin; the result does not depend on them.
    Raises: DataError when a class is absent or a logit of `like` is not finite.
    """
    z, y = _both_classes(like, label)
    target = _targets(y)
    slope, intercept, _ = _newton(_standardised(z)[0], target)
    share = target.mean()
    constant = float(-(share * np.log(share) + (1 - share) * np.log(1 - share)))

    def loss(logits: Floats) -> float:
        best, _, total = _newton(_standardised(logits)[0], target, (intercept, slope), enough=LOSS_CONVERGED)
        # Where the order of patches would have to be turned round, a flat curve is the best that is allowed.
        return total / len(target) if best > 0 else constant

    return loss


def _standardised(z: Floats) -> tuple[Floats, float, float]:
    """Logits of mean 0 and standard deviation 1, with the mean and standard deviation they had; equal logits: zeros."""
    centre, spread = float(z.mean()), float(z.std())
    return ((z - centre) / spread, centre, spread) if spread > 0 else (np.zeros_like(z), centre, 1.0)


def _targets(y: Floats) -> Floats:
    """Platt's: one pseudo-patch of the other class keeps them from 0 and 1."""
    positives = y.sum()
    return np.asarray(np.where(y == 1, (positives + 1) / (positives + 2), 1 / (len(y) - positives + 2)))


def _newton(
    x: Floats,
    target: Floats,
    start: tuple[float, float] | None = None,
    fixed: float | None = None,
    enough: float = CONVERGED,
) -> tuple[float, float, float]:
    """(slope, intercept, summed log-loss) of the best sigmoid(slope·x + intercept); a `fixed` slope stays.

    `start` is an (intercept, slope); `enough` the gain per patch below which no further step is taken.
    """
    columns = np.ones((1, len(x))) if fixed is not None else np.stack([np.ones_like(x), x])
    offset = fixed * x if fixed is not None else np.zeros_like(x)
    beta = np.array(start or (np.log(target.mean() / (1 - target.mean())), 0.0))[: len(columns)]
    loss, p = _loss(beta @ columns + offset, target)
    for _ in range(NEWTON_STEPS):
        gradient = columns @ (p - target)
        hessian = (columns * (p * (1 - p))) @ columns.T
        step = np.linalg.solve(hessian + 1e-12 * len(x) * np.eye(len(beta)), gradient)
        if gradient @ step < enough * len(x):
            break
        size = 1.0
        while (new := _loss((beta - size * step) @ columns + offset, target))[0] > loss and size > 1e-6:
            size /= 2
        beta, (loss, p) = beta - size * step, new
    return (fixed if fixed is not None else float(beta[1])), float(beta[0]), loss


def _loss(logit: Floats, target: Floats) -> tuple[float, Floats]:
    """Summed log-loss, and sigmoid(logit)."""
    below = np.exp(-np.abs(logit))
    p = np.where(logit >= 0, 1.0, below) / (1.0 + below)
    return float((np.maximum(logit, 0.0) + np.log1p(below) - target * logit).sum()), p


@dataclass(frozen=True)
class Curve:
    """Balanced accuracy over thresholds: `threshold` (k,) calibrated logits, `balanced_accuracy` (k,) smoothed."""

    threshold: Floats
    balanced_accuracy: Floats


def threshold_curve(u: ArrayLike, label: ArrayLike) -> Curve:
    """Smoothed balanced accuracy over thresholds on calibrated logits `u`.

    Sensitivity and specificity are kernel estimates (logistic kernel of standard deviation BANDWIDTH times
    Silverman's rule, for each class its own), computed on a grid by convolution.

    Source: Silverman 1986, Density Estimation, eq. 3.31; smoothing a ROC by class: Zou, Hall & Shapiro 1997.
    Raises: DataError when a class is absent.
    """
    u, y = _both_classes(u, label)
    return _curve(u, y, _grid(u))


def fit_threshold(u: ArrayLike, label: ArrayLike, domain: ArrayLike | None = None) -> float:
    """The confidence at which the smoothed balanced accuracy of calibrated logits `u` is highest.

    Without `domain`, over all patches (`pooled`). With it (`across`), the mean of the domains' own curves is
    maximised, so that a small domain counts as much as the largest one; domains with fewer than ten patches of a
    class have no say, and with fewer than two domains left the pooled curve is used (our choice).
    """
    u, y = _both_classes(u, label)
    grid = _grid(u)
    curves = [_curve(u[rows], y[rows], grid) for rows in _domains(y, domain)] or [_curve(u, y, grid)]
    mean = np.mean([curve.balanced_accuracy for curve in curves], axis=0)
    top = np.flatnonzero(mean >= mean.max() - 1e-12)
    # A flat top (separable classes) is met in its middle.
    at = (grid[top[0]] + grid[top[-1]]) / 2
    return float(1 / (1 + np.exp(-np.clip(at, -700, 700))))


def _domains(y: Floats, domain: ArrayLike | None) -> list[NDArray[np.bool_]]:
    if domain is None:
        return []
    names = np.asarray(domain).astype(str)
    masks = [names == name for name in np.unique(names)]
    enough = [rows for rows in masks if min((y[rows] == 1).sum(), (y[rows] == 0).sum()) >= ACROSS_LEAST]
    return enough if len(enough) >= 2 else []


def _grid(u: Floats) -> Floats:
    """Bin edges over the range in which thresholds make sense; a few far outliers must not stretch the bins."""
    low, high = np.quantile(u, [0.001, 0.999])
    margin = max(0.05 * (high - low), 1e-6)
    return np.linspace(low - margin, high + margin, BINS + 1)


def _curve(u: Floats, y: Floats, grid: Floats) -> Curve:
    sensitivity = _above(u[y == 1], grid)
    specificity = 1 - _above(u[y == 0], grid)
    return Curve(grid, (sensitivity + specificity) / 2)


def _above(values: Floats, grid: Floats) -> Floats:
    """Smoothed share of `values` above each point of `grid`."""
    width = grid[1] - grid[0]
    bins = np.clip(((values - grid[0]) / width).astype(np.int64), 0, BINS - 1)
    histogram = np.bincount(bins, minlength=BINS) / len(values)
    scale = max(_bandwidth(values), width) * np.sqrt(3) / np.pi  # a logistic kernel of that standard deviation
    offsets = (np.arange(-BINS, BINS) + 0.5) * width  # bin centre minus grid point
    kernel = 1 / (1 + np.exp(-np.clip(offsets / scale, -700, 700)))
    return np.asarray(np.convolve(histogram, kernel[::-1], "full")[BINS - 1 : 2 * BINS], dtype=np.float64)


def _bandwidth(values: Floats) -> float:
    quarter, three_quarters = np.quantile(values, [0.25, 0.75])
    spreads = [s for s in (values.std(), (three_quarters - quarter) / 1.34) if s > 0]
    return float(BANDWIDTH * 0.9 * min(spreads, default=0.0) * len(values) ** -0.2)


def _both_classes(z: ArrayLike, label: ArrayLike) -> tuple[Floats, Floats]:
    z, y = np.asarray(z, dtype=np.float64), np.asarray(label, dtype=np.float64)
    if z.shape != y.shape or z.ndim != 1:
        raise DataError(f"{z.shape} logits for {y.shape} labels")
    if not np.isfinite(z).all():
        raise DataError(f"{int((~np.isfinite(z)).sum())} logits are not finite", "train that member again")
    if not (y == 1).any() or not (y == 0).any():
        only = "atypical" if (y == 1).any() else "normal"
        raise DataError(
            f"all {len(y)} patches are {only}: nothing can be calibrated on one class",
            "patches of both classes are needed, in several cases",
        )
    return z, y
