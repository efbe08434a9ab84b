"""Losses beside the task's, all behind one small interface: what a batch looks like in, a scalar out.

An auxiliary loss may own parameters: they are trained and kept in the checkpoint with the member's, and thrown away
when its training is over. It may ask the network again, about other pixels. Nothing in here waits for a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midog.models.classifier import Classifier
from midog.models.heads.base import told_mean
from midog.models.predict import autocast
from midog.robustness.defence import raise_loss
from midog.robustness.local import Local
from midog.robustness.perturbation import evaluating
from midog.training.auxiliary_settings import Adversarial, AuxiliarySettings, DomainAdversarial, ScannerContrast
from midog.training.feed import Fed
from midog.training.losses import loss
from midog.training.machine import Resources
from midog.training.member import Training
from midog.training.pairing import GRAIN, START
from midog.training.step import task_loss


@dataclass(frozen=True)
class Task:
    """The member's task on a part of a batch, for a loss that asks the network again about these patches."""

    training: Training
    classifier: Classifier
    resources: Resources
    part: Fed

    def logit(self, pixels: Tensor) -> Tensor:
        """(n, 3, 128, 128) float in 0…1 to (n,) logits, with gradients.

        In float32 where training is in float16: without a scaled loss, gradients of pixels would vanish in it.
        """
        dtype = self.resources.dtype
        x = self.classifier.prepare_pixels(pixels)
        with autocast(self.resources.device, torch.float32 if dtype is torch.float16 else dtype):
            logits: Tensor = self.classifier(x)
        return logits

    def loss(self, pixels: Tensor) -> Tensor:
        """The task's loss on the part with other pixels, (n, 3, 128, 128) float in 0…1, as if it were a batch."""
        x = self.classifier.prepare_pixels(pixels)
        return task_loss(self.training, self.part, self.classifier, self.resources, x)


@dataclass(frozen=True)
class Seen:
    """What an auxiliary loss is given: of n images, and how far training is.

    Attributes:
        features: (n, width) float32 pooled features, with gradients.
        labels: (n,) int64, 1 atypical, 0 normal, -1 unknown.
        specimens: (n,) int64, equal where two images show the same tissue.
        confounders: (n,) int64 code of each image's scanner (or tumour, laboratory, domain).
        progress: of the training, 0 to 1.
        task: what the network was asked, and can be asked again.
    """

    features: Tensor
    labels: Tensor
    specimens: Tensor
    confounders: Tensor
    progress: float
    task: Task | None = None


class Auxiliary(nn.Module):
    """A loss beside the task's; `forward` gives what is added to it, weight included."""

    pace = 1.0
    """Learning rate of its own parameters, in units of the member's."""

    def forward(self, seen: Seen) -> Tensor:
        raise NotImplementedError

    def notes(self) -> dict[str, float]:
        """What an epoch's log line says of it, forgotten as it is told."""
        return {}


class DomainAdversary(Auxiliary):
    """Cross-entropy of a domain classifier, whose gradient reaches the features reversed.

    A classifier that is outrun is worse than none: each scanner's features run to the side that it takes for another's,
    and tell the scanners apart better than before. So it sees standardised features, learns ten times as fast as the
    member, and where it already knows less of a patch than chance does, that patch's features are pushed no further.
    All three are our choice.
    """

    pace = 10.0

    def __init__(self, settings: DomainAdversarial, width: int, levels: int) -> None:
        super().__init__()
        self.weight, self.chance = settings.weight, math.log(levels)
        hidden = settings.hidden
        layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, levels)] if hidden else []
        self.classifier = nn.Sequential(*(layers or [nn.Linear(width, levels)]))
        self._losses: list[Tensor] = []

    def forward(self, seen: Seen) -> Tensor:
        x = standardised(seen.features)
        with torch.no_grad():
            known = F.cross_entropy(self.classifier(x), seen.confounders, reduction="none") < self.chance
        factor = self.weight * ramp(seen.progress) * known[:, None].to(x.dtype)
        found = F.cross_entropy(self.classifier(reverse_gradient(x, factor)), seen.confounders)
        self._losses.append(found.detach())
        return found

    def notes(self) -> dict[str, float]:
        """`domain_loss`: the classifier's mean cross-entropy; log(levels) is chance."""
        return told_mean("domain_loss", self._losses)


class ScannerContrastLoss(Auxiliary):
    """Contrast of scanners on a linear projection of the features."""

    def __init__(self, settings: ScannerContrast, width: int, levels: int) -> None:
        super().__init__()
        self.settings, self.levels = settings, levels
        self.projection = nn.Linear(width, settings.width)

    def forward(self, seen: Seen) -> Tensor:
        settings = self.settings
        z = F.normalize(self.projection(seen.features), dim=1)
        specimens = seen.labels if settings.mode == "cross_scanner_label" else seen.specimens
        if settings.variant == "margin":
            return settings.weight * margin_contrast(z, specimens, seen.confounders, settings.margin)
        value = softmax_contrast(z, specimens, seen.confounders, self.levels, settings.tau, settings.negatives)
        return settings.weight * value


class AdversarialLoss(Auxiliary):
    """The task's loss on attacked patches.

    The attack meets the network in eval mode: batch norms keep their statistics, dropout is off. Then the attacked
    patches are a training batch of their own, whose statistics batch norms take in beside the clean one's (our choice).
    """

    def __init__(self, settings: Adversarial) -> None:
        super().__init__()
        self.weight = settings.weight
        kind, alpha = ("fgsm" if settings.steps == 1 else "pgd"), 2.5 * settings.epsilon / settings.steps
        self.attack = Local(kind, settings.epsilon, settings.steps, alpha)

    def forward(self, seen: Seen) -> Tensor:
        assert seen.task is not None
        return self.weight * seen.task.loss(self.attacked(seen.task))

    def attacked(self, task: Task) -> Tensor:
        """(n, 3, 128, 128) float32 in 0…1, no pixel further than epsilon from the patch's, without gradient."""
        part = task.part
        pixels = part.images.permute(0, 3, 1, 2).float() / 255
        start = part.extra[START].permute(0, 3, 1, 2).float() * (self.attack.radius / GRAIN)
        with evaluating(task.classifier):
            return raise_loss(task.logit, pixels, part.targets, self.attack, start, checked=False)


def build_auxiliary(settings: AuxiliarySettings, width: int, levels: int) -> Auxiliary:
    """The loss for features of `width` and a confounder of so many levels; torch's generator draws its parameters."""
    if isinstance(settings, DomainAdversarial):
        return DomainAdversary(settings, width, levels)
    if isinstance(settings, Adversarial):
        return AdversarialLoss(settings)
    return ScannerContrastLoss(settings, width, levels)


def guided(
    training: Training, classifier: Classifier, auxiliary: Auxiliary, progress: float, resources: Resources, part: Fed
) -> Tensor:
    """The task's loss on a part of a batch, with the terms that the head adds, and the auxiliary loss on the same
    features.

    Where `part` has views, they go through the network together with its patches; the task's loss leaves them out.
    """
    extra, n = part.extra, len(part)
    views = extra.get("views")
    labels, specimens, confounders = (
        torch.cat([extra[key] for key in (f"own_{name}", f"view_{name}") if key in extra])
        for name in ("labels", "specimens", "confounders")
    )
    x = classifier.prepare(part.images if views is None else torch.cat((part.images, views)))
    with autocast(resources.device, resources.dtype):
        features, given = classifier.features_and_look(x)
        logits, terms = classifier.answer(x[:n], part.targets, given[:n])
    task = sum(terms.values(), loss(training.loss, logits, part.targets, part.weights, training.gamma))
    # Of external pairs the views alone, which come last.
    again = Task(training, classifier, resources, part)
    seen = Seen(features.float()[-len(labels) :], labels, specimens, confounders, progress, again)
    beside: Tensor = auxiliary(seen)
    return task + beside


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float | Tensor) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradients[0], None


def standardised(features: Tensor) -> Tensor:
    """(n, width) features with mean 0 and variance 1 over the batch: what all of them share does not hide how they
    differ."""
    centred = features - features.mean(dim=0)
    return centred / (centred.square().mean(dim=0) + 1e-5).sqrt()


def reverse_gradient(x: Tensor, factor: float | Tensor) -> Tensor:
    """`x` (n, width) itself; its gradient comes back times −`factor`, a number or (n, 1). Source: Ganin et al. 2016."""
    reversed_: Tensor = _Reverse.apply(x, factor)  # type: ignore[no-untyped-call]
    return reversed_


def ramp(progress: float) -> float:
    """From 0 to almost 1 over training progress t in 0…1: 2/(1 + e^(−10 t)) − 1. Source: Ganin et al. 2016."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


def softmax_contrast(
    z: Tensor, specimens: Tensor, scanners: Tensor, levels: int, tau: float, negatives: str = "anchor_scanner"
) -> Tensor:
    """Mean over anchors i with positives, over their positives j, of −log(e^{s_ij} / (e^{s_ij} + Σ_k e^{s_ik})).

    Positives show i's specimen on another scanner. Negatives k show another specimen on i's scanner, or with
    `positive_scanner` on j's: scanners are never mixed among the negatives of a pair, or they would be a shortcut.

    Args:
        z: (n, width) projections; s_ij is their product over `tau`.
        specimens, scanners: (n,) codes; scanners from 0 to `levels` − 1.

    Returns: a scalar, 0 with a graph where no anchor has a positive. Source: ours, after ScanGen's pair rule.
    """
    similar = z @ z.T / tau
    other_specimen = specimens[:, None] != specimens[None, :]
    other_scanner = scanners[:, None] != scanners[None, :]
    positive = ~other_specimen & other_scanner
    on_scanner = scanners[None, :] == torch.arange(levels, device=z.device)[:, None]
    # (n, levels): log of the sum over other specimens on each scanner; far below any similarity where there is none.
    eligible = other_specimen[:, None, :] & on_scanner[None]
    beside = similar[:, None, :].expand(-1, levels, -1).masked_fill(~eligible, -1e30).logsumexp(dim=2)
    if negatives == "anchor_scanner":
        below = beside.gather(1, scanners[:, None])
    else:
        below = beside.gather(1, scanners[None, :].expand(len(z), -1))
    terms = torch.logaddexp(similar, below) - similar
    return _mean_of_anchors(terms, positive)


def margin_contrast(z: Tensor, specimens: Tensor, scanners: Tensor, margin: float) -> Tensor:
    """Mean over positive pairs of 1 − cos, and over negative pairs of max(0, cos − margin).

    Pairs as in `softmax_contrast`, negatives on the anchor's scanner; `z` (n, width) of length 1. A mean over no pair
    is 0.
    """
    cosine = z @ z.T
    same_specimen = specimens[:, None] == specimens[None, :]
    same_scanner = scanners[:, None] == scanners[None, :]
    return _mean_where(1 - cosine, same_specimen & ~same_scanner) + _mean_where(
        (cosine - margin).clamp_min(0), ~same_specimen & same_scanner
    )


def _mean_of_anchors(terms: Tensor, positive: Tensor) -> Tensor:
    """Mean over rows that have positives of the mean over their positives."""
    count = positive.sum(dim=1)
    each = (terms * positive).sum(dim=1) / count.clamp_min(1)
    return each.sum() / (count > 0).sum().clamp_min(1)


def _mean_where(terms: Tensor, chosen: Tensor) -> Tensor:
    return (terms * chosen).sum() / chosen.sum().clamp_min(1)
