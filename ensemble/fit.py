"""What a blend is fitted by, and what a fit is: settings, one fit, its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ensemble.blend import OperatingPoint
from midog.errors import UsageError, unknown

Floats = NDArray[np.float64]
Kind = Literal["tuned", "equal", "stack"]
Views = Literal["none", "rot4", "d4", "stain", "d4_stain", "macenko", "d4_macenko"]
Threshold = Literal["pooled", "across"]

KINDS: tuple[str, ...] = ("equal", "tuned", "stack")
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How much of the tuned weights is kept: w = (1 - λ) · equal + λ · tuned."""


@dataclass(frozen=True)
class BlendSettings:
    """How members are blended.

    kind: tuned (simplex weights by Optuna, shrunk towards equal), equal, or stack (regularised logistic regression).
    trials: Optuna's, for the fit on all cases; cross-fits get a tenth, but 100 where there are as many.
    views: a set of `augment.views.VIEW_SETS`, averaged for each patch.
    threshold: pooled, or across = serves each domain alike.
    fold_models: how many of a member's fold models, the first ones, go into the blend and its bundle; absent: all.
        Scores are those of out-of-fold logits, which all fold models give.
    fast: how many members the operating point `fast` has: those of lowest log-loss by themselves, one fold model each.
    """

    kind: Kind = "tuned"
    trials: int = 2000
    views: Views = "none"
    threshold: Threshold = "pooled"
    seed: int = 0
    fold_models: Mapping[str, int] = field(default_factory=dict)
    fast: int = 1

    def __post_init__(self) -> None:
        for name, choices in (("kind", Kind), ("views", Views), ("threshold", Threshold)):
            if getattr(self, name) not in get_args(choices):
                raise unknown(f"blend {name}", str(getattr(self, name)), get_args(choices))
        if self.trials < 1 or self.seed < 0:
            raise UsageError(
                f"blend trials {self.trials}, seed {self.seed}: at least one trial and a seed from 0 are needed",
                "trials: 2000, seed: 0",
            )
        if self.fast < 1:
            raise UsageError(f"blend fast {self.fast}: the point needs a member", "fast: 1")
        few = [f"{name}: {count}" for name, count in self.fold_models.items() if count < 1]
        if few:
            raise UsageError(f"blend fold_models {', '.join(few)}: at least one of a member's is needed", "1 or more")


@dataclass(frozen=True)
class Fit:
    """Everything fitted on one set of cases.

    `weights` maps equal, tuned and stack to (m,) weights; `strength` is λ and `strength_losses` what each candidate
    λ cost on inner held-out cases; `tables` maps each member and kind to its operating point with the blend's views,
    and `views <set>` to that of equal weights with this view set: what views are worth, from stored logits;
    `points` are the blend's operating points.
    """

    weights: dict[str, Floats]
    strength: float
    strength_losses: tuple[float, ...]
    tables: dict[str, OperatingPoint]
    points: dict[str, OperatingPoint]


@dataclass(frozen=True)
class Predictions:
    """Blended logit z, calibrated confidence (both (n,) float64) and class (n,) bool of each patch."""

    logit: Floats
    confidence: Floats
    predicted: NDArray[np.bool_]
