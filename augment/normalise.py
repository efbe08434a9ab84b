"""Stain normalisation as augmentation: a patch shown in the colours or stains of a reference, which itself varies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from augment.checks import check_probability, check_share
from augment.macenko import STRENGTHS, macenko_patches
from augment.reinhard import TYPICAL, reinhard
from midog.errors import unknown

Patch = NDArray[np.uint8]
METHODS = ("reinhard", "macenko")


@dataclass(frozen=True)
class Normalise:
    """Some patches are shown in a reference, the others as they are. Probability and spread are our choice.

    p: probability.
    method: reinhard, the CIELAB statistics of `augment.reinhard.TYPICAL` (Reinhard et al. 2001); macenko, the stains of
        `augment.macenko` (Macenko et al. 2009).
    spread: largest change of the reference, after the idea of stain augmentation: of a mean as a share of its
        deviation, of a deviation or a stain's strength as the logarithm of a factor; 0 = always exactly the reference.
    """

    p: float = 0.5
    method: str = "reinhard"
    spread: float = 0.1

    def __post_init__(self) -> None:
        check_probability("normalise.p", self.p)
        check_share("normalise.spread", self.spread, 1)
        if self.method not in METHODS:
            raise unknown("normalise.method", self.method, METHODS)


def normalise(image: Patch, settings: Normalise, u: Sequence[float]) -> Patch:
    """Show a patch in a reference that has moved by as much as `u` says.

    Args:
        image: (h, w, 3) uint8 RGB. Pure black pixels are border padding: they do not count and stay black.
        u: six numbers in [0, 1): of three means and three deviations, or of haematoxylin, eosin and none; 0.5 moves
            nothing.

    Returns: (h, w, 3) uint8; with macenko the same pixels where two stains cannot be told apart.
    """
    moves = [settings.spread * (2 * x - 1) for x in u]
    if settings.method == "macenko":
        strengths = [wanted * math.exp(move) for wanted, move in zip(STRENGTHS, moves[:2], strict=True)]
        shown: Patch = macenko_patches(image[None], strengths)[0]
        return shown
    mean = [centre + move * std for centre, std, move in zip(*TYPICAL, moves[:3], strict=True)]
    return reinhard(image, mean, [std * math.exp(move) for std, move in zip(TYPICAL[1], moves[3:], strict=True)])
