"""One perturbation for all images: features of what it is added to turn away from their clean selves. No labels.

    min over δ of  mean over x, f of  cos( f(x), f(clip01(x + δ)) ),   ‖δ‖∞ <= ε,   δ ← clip(δ − α·sign ∇, −ε, ε)

UTAP-style. The objective is that of Wang et al., arXiv:2510.16660; the code is ours, from the formula. Its numbers (ε,
epochs, batch, 900 images) reached us at second hand. The mean over several backbones, the start and the choice of
images are our choice.

Trap: δ = 0 is the maximum of the cosine, where the gradient is rounding noise. So δ starts at random, within 1/255.
Fit on training cases and evaluate on others: `check_disjoint`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from midog.errors import ArgumentError, DataError, LeakError
from midog.robustness.perturbation import (
    Encode,
    add,
    check_above_zero,
    check_budget,
    check_delta,
    check_pixels,
    checked_features,
    cosine,
    evaluating,
    features_of,
    uniform,
    value_and_gradient,
)

EPSILONS = (1 / 255, 2 / 255, 4 / 255, 8 / 255, 20 / 255)
"""Budgets to report, each with a perturbation of its own. Our choice; the last is the published one."""


@dataclass(frozen=True)
class Universal:
    """How a universal perturbation is found.

    epsilon: largest change of a pixel in [0, 1]; 0 gives δ = 0. alpha: length of a step; None is epsilon·batch/n, so
    that one epoch of constant sign spans epsilon. start: radius of the random start, at most epsilon.
    """

    epsilon: float = 20 / 255
    epochs: int = 10
    batch: int = 5
    alpha: float | None = None
    start: float = 1 / 255
    seed: int = 0

    def __post_init__(self) -> None:
        check_budget("universal.epsilon", self.epsilon)
        check_above_zero("universal.epochs", self.epochs)
        check_above_zero("universal.batch", self.batch)
        check_above_zero("universal.start", self.start)
        if self.alpha is not None:
            check_above_zero("universal.alpha", self.alpha)

    def step_length(self, n: int) -> float:
        """alpha for `n` images."""
        return self.epsilon * min(self.batch, n) / n if self.alpha is None else self.alpha


@dataclass(frozen=True, eq=False)
class Step:
    """After a step: its number from 0, δ (1, 3, h, w), and the mean cosine of the step's batch before it."""

    number: int
    delta: Tensor
    cosine: float


def fit_universal(
    encode: Encode | Sequence[Encode], pixels: Tensor, settings: Universal | None = None, batch: int = 32
) -> Tensor:
    """The perturbation δ, (1, 3, h, w), dtype and device of `pixels`; apply it with `perturbation.add`.

    Args:
        encode: One encoder or several; of several the mean cosine is lowered. All take the same pixels, so those with
            another input size resize inside.
        pixels: (n, 3, h, w) in [0, 1]: patches of training cases, e.g. those of `balanced_sample`.
        settings: See `Universal`.
        batch: Images at once for the clean features; changes nothing else.

    Raises: DataError for pixels outside [0, 1], or features and gradients that are not finite; UsageError for an
        encoder without gradient.
    """
    settings = settings or Universal()
    delta = pixels.new_zeros((1, *pixels.shape[1:]))
    for step in universal_steps(encode, pixels, settings, batch):
        delta = step.delta
    return delta


def universal_steps(
    encode: Encode | Sequence[Encode], pixels: Tensor, settings: Universal, batch: int = 32
) -> Iterator[Step]:
    """`fit_universal`, a step at a time: `epochs`·⌈n/batch⌉ of them, none with epsilon 0. For progress and curves."""
    encoders = [encode] if callable(encode) else list(encode)
    if not encoders:
        raise ArgumentError("no encoder to attack", "one callable, or a sequence of them")
    check_pixels(pixels)
    if settings.epsilon == 0:
        return
    generator = torch.Generator().manual_seed(settings.seed)
    clean = [features_of(one, pixels, batch) for one in encoders]
    alpha = settings.step_length(len(pixels))
    delta = uniform((1, *pixels.shape[1:]), min(settings.start, settings.epsilon), pixels, generator)
    number = 0
    for _ in range(settings.epochs):
        order = torch.randperm(len(pixels), generator=generator).to(pixels.device)
        for rows in torch.split(order, settings.batch):
            value, gradient = mean_cosine(encoders, pixels[rows], [one[rows] for one in clean], delta)
            delta = (delta - alpha * gradient.sign()).clamp(-settings.epsilon, settings.epsilon)
            yield Step(number, delta, value)
            number += 1


def mean_cosine(
    encoders: Sequence[Encode], pixels: Tensor, clean: Sequence[Tensor], delta: Tensor
) -> tuple[float, Tensor]:
    """Mean over images and encoders of cos(clean features, attacked features), and its gradient, the shape of `delta`.

    Args:
        pixels: (n, 3, h, w). clean: (n, d) for each encoder. delta: (1, 3, h, w).

    For f(x) = Wx and one image the gradient is Wᵀ(û − cos·v̂)/‖v‖ with u = Wx, v = W(x + δ), where nothing is clipped.
    """
    check_delta(delta, pixels)
    total, gradient = 0.0, torch.zeros_like(delta)
    # One encoder after the other: their sum would hold the activations of all at once.
    for encode, features in zip(encoders, clean, strict=True):

        def objective(d: Tensor, encode: Encode = encode, features: Tensor = features) -> Tensor:
            return cosine(checked_features(encode(add(pixels, d)), len(pixels)), features).mean(dim=0, keepdim=True)

        with evaluating(encode):
            value, found = value_and_gradient(objective, delta)
        total += float(value) / len(encoders)
        gradient += found / len(encoders)
    return total, gradient


def balanced_sample(label: ArrayLike, domain: ArrayLike, n: int, seed: int = 0) -> NDArray[np.int64]:
    """Indices of `n` patches, spread as evenly over label × domain as there are patches; ascending.

    Our choice of images to fit on. Give it training cases alone.

    Raises: ArgumentError for an `n` below 1; DataError for fewer than `n` patches or unequal lengths.
    """
    check_above_zero("n", n)
    labels, domains = np.asarray(label).astype(str), np.asarray(domain).astype(str)
    if labels.shape != domains.shape or labels.ndim != 1 or len(labels) < n:
        raise DataError(f"{n} patches asked of {len(labels)} labels and {len(domains)} domains")
    order = np.random.default_rng(seed).permutation(len(labels))
    cells, cell = np.unique(np.stack([labels, domains], axis=1)[order], axis=0, return_inverse=True)
    turn = np.empty(len(order), dtype=np.int64)
    for number in range(len(cells)):
        inside = cell.ravel() == number
        turn[inside] = np.arange(int(inside.sum()))
    return np.sort(order[np.argsort(turn, kind="stable")[:n]]).astype(np.int64)


def check_disjoint(fitted: ArrayLike, evaluated: ArrayLike) -> None:
    """Raises: LeakError when a case is both fitted on and evaluated; patches without a case are not compared."""
    shared = (set(np.asarray(fitted).astype(str)) & set(np.asarray(evaluated).astype(str))) - {""}
    if shared:
        raise LeakError(
            f"{len(shared)} cases are in the perturbation's training and in its evaluation",
            "fit it on training cases alone",
            sorted(shared),
        )
