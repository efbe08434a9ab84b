"""Label-free attacks on a region of a patch, or on a share of a set of patches.

    max over δ of  D( f(x + δ), f(x) ),   δ = 0 outside a mask,   ‖δ‖∞ <= ε,   D = 1 − cos or squared L2

Butterfly-style, after the abstract of Liu et al., arXiv:2505.24141: a small local change with a large effect, without
labels. Its attacks, budgets and losses are not available to the project: all formulas and numbers here are ours. The
steps are those of FGSM (Goodfellow 2015), BIM (Kurakin 2017), PGD (Madry 2018), MI-FGSM (Dong 2018) and, with a changed
objective, of C&W (Carlini & Wagner 2017).

Trap: δ = 0 is where D has no gradient, so every attack starts off it at random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from midog.errors import ArgumentError, DataError, UsageError, unknown
from midog.robustness.perturbation import (
    BATCH,
    DISTANCES,
    SMALL,
    Encode,
    Objective,
    add,
    ascend,
    check_above_zero,
    check_budget,
    check_mask,
    check_pixels,
    checked_features,
    distance,
    evaluating,
    features_of,
    shifted,
    sign_noise,
    uniform,
    value_and_gradient,
)

KINDS = ("fgsm", "bim", "pgd", "mi-fgsm", "cw")


@dataclass(frozen=True)
class Local:
    """How a patch is attacked. All defaults are our choice.

    kind: fgsm: one step of epsilon along the gradient at a random start. bim, pgd, mi-fgsm: `steps` of alpha within
        ±epsilon; pgd starts anywhere in ±epsilon, the others near 0; mi-fgsm keeps `momentum` (0 makes it bim).
        cw: Adam on min ‖δ‖² − weight·D, in a tanh variable that keeps pixels within ±epsilon and [0, 1]; epsilon 1
        leaves only the latter, as published. The cheapest δ found is kept, so a small weight leaves patches clean.
    epsilon: largest change of a pixel in [0, 1]; 0 changes nothing.
    start: radius of the random start, at most epsilon; None: epsilon for pgd, else 1/255.
    distance: cosine, or l2 (squared).  weight, rate: of cw alone; rate is Adam's.
    """

    kind: str = "pgd"
    epsilon: float = 8 / 255
    steps: int = 10
    alpha: float = 2 / 255
    momentum: float = 1.0
    start: float | None = None
    distance: str = "cosine"
    weight: float = 10.0
    rate: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("attack", self.kind, KINDS)
        if self.distance not in DISTANCES:
            raise unknown("distance", self.distance, DISTANCES)
        check_budget("local.epsilon", self.epsilon)
        check_budget("local.momentum", self.momentum)
        for name in ("steps", "alpha", "weight", "rate"):
            check_above_zero(f"local.{name}", getattr(self, name))
        if self.start is not None:
            check_budget("local.start", self.start)

    @property
    def radius(self) -> float:
        """Of the random start."""
        wanted = self.start if self.start is not None else self.epsilon if self.kind == "pgd" else 1 / 255
        return min(wanted, self.epsilon)


def attack(
    encode: Encode,
    pixels: Tensor,
    settings: Local | None = None,
    mask: Tensor | None = None,
    reference: Tensor | None = None,
    batch: int = BATCH,
) -> Tensor:
    """The attacked pixels, (n, 3, h, w); outside `mask`, and with epsilon 0, the given ones bit for bit.

    Args:
        encode: (k, 3, h, w) to (k, d) features. pixels: (n, 3, h, w) in [0, 1].
        mask: bool (1 or n, 1, h, w), True = may change; None = everywhere. See `masks`.
        reference: (n, d) features to move away from; None: the patches' own.
        batch: Images at once. It does not change the attack.

    Raises: DataError for pixels outside [0, 1], a mask of another size, features or gradients that are not finite;
        UsageError for an encoder without gradient, or a start of 0 without `reference`.
    """
    settings = settings or Local()
    check_pixels(pixels)
    if settings.epsilon > 0 and settings.radius == 0 and reference is None:
        raise UsageError(
            "local.start is 0: a patch's distance to itself has no gradient there", "start: null, or 1/255"
        )
    if mask is not None:
        check_mask(mask, pixels)
        mask = mask.to(pixels.device)
    if settings.epsilon == 0 or (mask is not None and not bool(mask.any())):
        return pixels.clone()
    reference = features_of(encode, pixels, batch) if reference is None else reference
    generator = torch.Generator().manual_seed(settings.seed)
    parts = []
    with evaluating(encode):
        for rows in torch.split(torch.arange(len(pixels)), batch):
            objective = _distance_to(encode, reference[rows], settings.distance)
            region = mask if mask is None or len(mask) == 1 else mask[rows]
            parts.append(raise_objective(objective, pixels[rows], settings, generator, region))
    return torch.cat(parts)


def raise_objective(
    objective: Objective, pixels: Tensor, settings: Local, generator: torch.Generator, mask: Tensor | None = None
) -> Tensor:
    """The attacked pixels of one batch, by any objective to be raised: (n, 3, h, w) to (n,). See `attack`."""
    return climb(objective, pixels, settings, uniform(pixels.shape, settings.radius, pixels, generator), mask)


def climb(
    objective: Objective,
    pixels: Tensor,
    settings: Local,
    start: Tensor,
    mask: Tensor | None = None,
    checked: bool = True,
) -> Tensor:
    """`raise_objective` from a given start, (n, 3, h, w). `checked`: see `value_and_gradient`."""
    if settings.kind == "fgsm":
        gradient = value_and_gradient(objective, shifted(pixels, start, mask), checked)[1]
        return shifted(pixels, settings.epsilon * gradient.sign(), mask)
    if settings.kind == "cw":
        return _carlini_wagner(objective, pixels, settings, start, mask)
    momentum = settings.momentum if settings.kind == "mi-fgsm" else 0.0
    return ascend(objective, pixels, start, settings.epsilon, settings.alpha, settings.steps, momentum, mask, checked)


def noise(pixels: Tensor, epsilon: float, mask: Tensor | None = None, seed: int = 0) -> Tensor:
    """The control: `pixels` with ±epsilon at random in the same mask, drawn for each patch.

    For a universal perturbation the control is one draw for all: `add(pixels, sign_noise((1, 3, h, w), …))`.
    """
    check_pixels(pixels)
    check_budget("epsilon", epsilon)
    return add(pixels, sign_noise(pixels.shape, epsilon, pixels, seed), mask)


def sensitivity(
    encode: Encode, pixels: Tensor, settings: Local | None = None, batch: int = BATCH
) -> NDArray[np.float64]:
    """How much a patch's D grows at first order within ±epsilon: epsilon·‖gradient at the random start‖₁, (n,) float64.

    Raises: as `attack`.
    """
    settings = settings or Local()
    check_pixels(pixels)
    reference = features_of(encode, pixels, batch)
    generator = torch.Generator().manual_seed(settings.seed)
    found = []
    with evaluating(encode):
        for rows in torch.split(torch.arange(len(pixels)), batch):
            start = uniform(pixels[rows].shape, settings.radius, pixels, generator)
            objective = _distance_to(encode, reference[rows], settings.distance)
            gradient = value_and_gradient(objective, add(pixels[rows], start))[1]
            found.append(settings.epsilon * gradient.double().abs().sum(dim=(1, 2, 3)))
    return np.asarray(torch.cat(found).cpu().numpy(), dtype=np.float64)


def choose(
    n: int, rho: float, score: ArrayLike | None = None, case: ArrayLike | None = None, seed: int = 0
) -> NDArray[np.bool_]:
    """Which of `n` patches are attacked: at most the share `rho`, of each case where `case` is given; (n,) bool.

    Args:
        score: (n,), the highest are chosen (`sensitivity`, attention), ties by index; None: at random.

    Raises: ArgumentError for a `rho` outside [0, 1]; DataError for scores that are not finite or unequal lengths.
    """
    check_budget("rho", rho)
    rank = np.random.default_rng(seed).permutation(n) if score is None else np.asarray(score, dtype=np.float64)
    group = np.zeros(n, dtype=np.int64) if case is None else np.unique(np.asarray(case), return_inverse=True)[1]
    if rank.shape != (n,) or group.shape != (n,):
        raise DataError(f"{len(rank)} scores and {len(group)} cases for {n} patches")
    if not np.isfinite(rank).all():
        raise DataError(f"{int((~np.isfinite(rank)).sum())} of {n} scores are not finite")
    chosen = np.zeros(n, dtype=bool)
    for number in np.unique(group):
        members = np.flatnonzero(group == number)
        # The small addition: 0.29 · 100 is 28.999… in floats.
        count = int(np.floor(rho * len(members) + 1e-9))
        chosen[members[np.argsort(-rank[members], kind="stable")[:count]]] = True
    return chosen


def attack_chosen(
    encode: Encode, pixels: Tensor, chosen: ArrayLike, settings: Local | None = None, mask: Tensor | None = None
) -> Tensor:
    """`attack` on the patches that are `chosen` (n,) bool; the others bit for bit.

    Raises: ArgumentError for a `chosen` of another length; else as `attack`.
    """
    rows = torch.from_numpy(np.asarray(chosen, dtype=bool))
    if rows.shape != (len(pixels),):
        raise ArgumentError(f"{len(rows)} choices for {len(pixels)} patches", "one for each patch: see `choose`")
    result = pixels.clone()
    if bool(rows.any()):
        region = mask if mask is None or len(mask) == 1 else mask[rows]
        result[rows] = attack(encode, pixels[rows], settings, region)
    return result


def _distance_to(encode: Encode, reference: Tensor, kind: str) -> Objective:
    return lambda x: distance(kind, checked_features(encode(x), len(x)), reference)


def _carlini_wagner(
    objective: Objective, pixels: Tensor, settings: Local, start: Tensor, mask: Tensor | None
) -> Tensor:
    """Adam on ‖δ‖² − weight·D over w, with x + δ = low + (high − low)·(1 + tanh w)/2; the cheapest δ of each image."""
    low, high = (pixels - settings.epsilon).clamp(0, 1), (pixels + settings.epsilon).clamp(0, 1)
    place = (add(pixels, start, mask) - low) / (high - low).clamp_min(SMALL) * 2 - 1
    w = torch.atanh(place.clamp(-1 + 1e-6, 1 - 1e-6)).requires_grad_(True)
    optimiser = torch.optim.Adam([w], lr=settings.rate)
    best = pixels.clone()
    with torch.no_grad():
        least = -settings.weight * objective(pixels)

    def attacked(w: Tensor) -> Tensor:
        x = low + (high - low) * (1 + w.tanh()) / 2
        return x if mask is None else torch.where(mask, x, pixels)

    def cost(w: Tensor) -> Tensor:
        x = attacked(w)
        return (x - pixels).square().sum(dim=(1, 2, 3)) - settings.weight * objective(x)

    for _ in range(settings.steps + 1):
        values, w.grad = value_and_gradient(cost, w)
        with torch.no_grad():
            better = values < least
            least = torch.where(better, values, least)
            best = torch.where(better[:, None, None, None], attacked(w), best)
        optimiser.step()
    return best
