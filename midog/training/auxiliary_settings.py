"""What a member's `auxiliary` may say; `auxiliary.py` and `pairing.py` carry it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from midog.errors import UsageError, unknown

CONFOUNDERS = ("scanner", "tumour", "laboratory", "domain")
MODES = ("pseudo", "paired", "cross_scanner_label")
VARIANTS = ("softmax", "margin")
NEGATIVES = ("anchor_scanner", "positive_scanner")
STYLES = ("fourier", "reinhard")


@dataclass(frozen=True)
class DomainAdversarial:
    """A domain classifier behind a reversed gradient: features are to say nothing of where a patch comes from.

    Attributes:
        confounder: column that the classifier tells: scanner, tumour, laboratory or domain.
        weight: largest factor λ on the reversed gradient, reached by 2/(1 + e^(-10 t)) - 1 over training progress t.
        hidden: width of the classifier's hidden layer; 0 is a linear one.

    Source: Ganin et al. 2016 (JMLR 17:59); the largest λ, the column and the widths are our choice.
    """

    kind: Literal["domain_adversarial"] = "domain_adversarial"
    confounder: str = "scanner"
    weight: float = 0.1
    hidden: int = 0

    def __post_init__(self) -> None:
        if self.confounder not in CONFOUNDERS:
            raise unknown("auxiliary.confounder", self.confounder, CONFOUNDERS)
        if not 0 <= self.weight < float("inf"):
            raise UsageError(f"auxiliary.weight is {self.weight}", "a number from 0")
        if self.hidden < 0:
            raise UsageError(f"auxiliary.hidden is {self.hidden}", "a width above 0, or 0 for a linear classifier")


@dataclass(frozen=True)
class ScannerContrast:
    """Attract the same specimen on another scanner, repel other specimens on the same scanner.

    Attributes:
        mode: pseudo, views of one patch restyled towards other scanners of the fold's training side; paired, real
            same-tissue pairs from `pairs`; cross_scanner_label, the label stands in for the specimen: a supervised
            loss, another method, and not ScanGen-style.
        weight: factor on the loss.
        tau: temperature. width: of the linear projection. These three and `margin`: our choice.
        variant: softmax; or margin, cosine distance of positives beside hinges of negatives above `margin`.
        negatives: on the anchor's scanner; or positive_scanner, on that of the positive, where what all patches of a
            scanner share is neither rewarded nor removed.
        style: what restyles in mode pseudo: fourier (low frequencies, β `beta`) or reinhard (colour statistics).
        pairs: folder of same-tissue pairs, for mode paired (`midog.data.pairs`).

    Source: after ScanGen (Carloni et al., arXiv 2507.22092), whose equation is not available to this project: the
    formulas are ours.
    """

    kind: Literal["scanner_contrast"] = "scanner_contrast"
    mode: str = "pseudo"
    weight: float = 0.1
    tau: float = 0.1
    width: int = 96
    variant: str = "softmax"
    margin: float = 0.5
    negatives: str = "anchor_scanner"
    style: str = "reinhard"
    beta: float = 0.05
    pairs: str = ""

    def __post_init__(self) -> None:
        for name, names in (("mode", MODES), ("variant", VARIANTS), ("negatives", NEGATIVES), ("style", STYLES)):
            if getattr(self, name) not in names:
                raise unknown(f"auxiliary.{name}", getattr(self, name), names)
        if not 0 < self.weight < float("inf"):
            raise UsageError(f"auxiliary.weight is {self.weight}", "a number above 0; auxiliary: off goes without")
        if not 0.01 <= self.tau < float("inf"):
            raise UsageError(f"auxiliary.tau is {self.tau}", "a number from 0.01")
        if self.width < 1:
            raise UsageError(f"auxiliary.width is {self.width}", "at least 1")
        if not -1 <= self.margin <= 1:
            raise UsageError(f"auxiliary.margin is {self.margin}", "a cosine: -1 to 1")
        if not 0 < self.beta <= 0.1:
            raise UsageError(f"auxiliary.beta is {self.beta}", "above 0, at most 0.1")
        if self.variant == "margin" and self.negatives == "positive_scanner":
            raise UsageError("auxiliary.negatives positive_scanner belongs to the softmax", "variant: softmax")
        if (self.mode == "paired") != bool(self.pairs):
            fix = "auxiliary: {kind: scanner_contrast, mode: paired, pairs: FOLDER}"
            raise UsageError(f"auxiliary.mode is {self.mode}, auxiliary.pairs is {self.pairs or 'empty'}", fix)


@dataclass(frozen=True)
class Adversarial:
    """The task's loss once more, on the batch's patches as an attack leaves them that raises their cross-entropy.

    Attributes:
        epsilon: largest change of a pixel in 0…1; 4/255 are four grey levels.
        steps: 1 is FGSM, its gradient taken at a random start within 1/255; more are PGD from a random start within
            ±epsilon, in steps of 2.5 · epsilon / steps. Behind `harmonise: macenko`, whose percentiles are steep, a few
            long steps overshoot on some patches: take one, or twenty.
        weight: factor on that loss.

    Source: Goodfellow 2015 (FGSM beside the clean loss), Madry 2018 (PGD); all numbers are our choice.
    """

    kind: Literal["adversarial"] = "adversarial"
    epsilon: float = 4 / 255
    steps: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            fix = "above 0, at most 1: four grey levels are 0.0157; auxiliary: off goes without"
            raise UsageError(f"auxiliary.epsilon is {self.epsilon}", fix)
        if self.steps < 1:
            raise UsageError(f"auxiliary.steps is {self.steps}", "1 for FGSM, more for PGD")
        if not 0 < self.weight < float("inf"):
            raise UsageError(f"auxiliary.weight is {self.weight}", "a number above 0; auxiliary: off goes without")


AuxiliarySettings = DomainAdversarial | ScannerContrast | Adversarial
AUXILIARIES: dict[str, type[Any] | None] = {
    "off": None,
    "domain_adversarial": DomainAdversarial,
    "scanner_contrast": ScannerContrast,
    "adversarial": Adversarial,
}
