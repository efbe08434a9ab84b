"""What a member's `start` may say; `start.py` carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from midog.errors import UsageError


@dataclass(frozen=True)
class Reconstruct:
    """Masked patches are filled in again, from the last feature map through one linear layer that is thrown away.

    Attributes:
        epochs: length of the start, over every training patch of the fold once each, whatever its label.
        lr: peak learning rate, after a tenth of the epochs; cosine to 0.

    Source: after SimMIM (Xie et al. 2022): hidden pixels get the mean colour, L1 on what was hidden; the values, the
    normalisation by patch and the weight of the centre are our choice.
    """

    kind: Literal["reconstruct"] = "reconstruct"
    epochs: int = 20
    lr: float = 2e-4

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Distil:
    """The member's model learns the logit that another member's model of the same fold gives to the same view.

    Attributes:
        teacher: member of the recipe.
        epochs, lr: as for `Reconstruct`.
        features: weight of the cosine distance to the teacher's pooled features, through a linear layer that is thrown
            away; 0 leaves it out.

    Source: Hinton et al. 2015 for the logit, both on one view as in Beyer et al. 2022; the values are our choice.
    """

    kind: Literal["distil"] = "distil"
    teacher: str = ""
    epochs: int = 20
    lr: float = 2e-4
    features: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        if not self.teacher:
            raise UsageError("start.teacher names no member", "start: {kind: distil, teacher: MEMBER}")
        if not 0 <= self.features < float("inf"):
            raise UsageError(f"start.features is {self.features}", "a number from 0")


Start = Reconstruct | Distil
STARTS: dict[str, type[Any] | None] = {"off": None, "reconstruct": Reconstruct, "distil": Distil}


def _check(settings: Start) -> None:
    if settings.epochs < 1:
        raise UsageError(f"start.epochs is {settings.epochs}", "at least 1; start: off goes without")
    if not 0 < settings.lr < float("inf"):
        raise UsageError(f"start.lr is {settings.lr}", "a number above 0, such as 2e-4")
