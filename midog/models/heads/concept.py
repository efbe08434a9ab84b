"""CATE: features drawn towards concepts, and read as similarities to them (Huang et al. 2024, arXiv:2411.09894).

    (μ, log σ²) = W₂ Drop(ReLU(W₁ x)),  z = μ + ε σ,  S = sg(56.3477 · z Aᵀ), standardised,
    x_c = AlphaDrop(ELU(W_c S)),  logit = W [z; x_c] + b.

Anchors are vectors of a text encoder, or prototypes: centroids of frozen training features, without any language prior.
Published for bags of a slide; here each patch is its own bag (our choice): the contrast takes the anchor of its own
label, S is standardised over the concepts of one patch, and evaluation takes z = μ, so that an answer depends on no
other patch. `bagwise` keeps the published reading for comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from midog.errors import DataError, UsageError
from midog.models.heads.base import HeadModule
from midog.models.weights import TensorFile

TEMPERATURE, SCALE, NEAREST = 0.1, 56.3477, 10
HIDDEN_DROPOUT, CONCEPT_DROPOUT = 0.2, 0.4
"""The authors' values, all five."""
PROTOTYPES = "prototypes"
CLASSES = ("class_0", "class_1")
AGNOSTIC = "agnostic_"
FLAT = 1e-6
"""Least standard deviation that similarities are divided by: equal ones stay 0."""


@dataclass(frozen=True)
class Concept:
    """The weights of the losses are our choice, the width is the authors'.

    Attributes:
        anchors: `prototypes`, or a safetensors file of a text encoder's vectors: matrices (n, width) named `class_0`
            (normal), `class_1` (atypical) and `agnostic_…` for what belongs to neither.
        clusters: prototypes of each class.
        width: of the bottleneck and of the concepts' features.
        nce: weight of the contrast with the anchors.
        kl: weight of the divergence from the standard normal.
        project: bring features to the anchors' width by a learned linear layer; without it the widths must agree.
    """

    kind: Literal["concept"] = "concept"
    anchors: str = PROTOTYPES
    clusters: int = 8
    width: int = 512
    nce: float = 0.1
    kl: float = 1e-3
    project: bool = False

    def __post_init__(self) -> None:
        if not self.anchors:
            raise UsageError("head.anchors is empty", "`prototypes`, or the path of a safetensors file")
        for name in ("clusters", "width"):
            if getattr(self, name) < 1:
                raise UsageError(f"head.{name} is {getattr(self, name)}", "a whole number from 1")
        for name in ("nce", "kl"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"head.{name} is {getattr(self, name)}", "a number from 0 (off)")
        if self.project and self.anchors == PROTOTYPES:
            raise UsageError("head.project with prototypes: they have the features' width", "project: false")


class ConceptHead(HeadModule):
    """(n, features) to (n,) float32 logits.

    Args:
        features: width of what it is given.
        settings: see `Concept`.
        anchors: (n_j, width) float by name, `class_0` and `class_1` among them; they are kept as buffers so named.

    Raises: UsageError where the widths differ and no projection is declared.
    """

    has_losses = True

    def __init__(self, features: int, settings: Concept, anchors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.settings = settings
        self.groups = (*CLASSES, *sorted(name for name in anchors if name not in CLASSES))
        d = anchors[CLASSES[0]].shape[1]
        if d != features and not settings.project:
            raise UsageError(
                f"the anchors of head.anchors are {d} wide, the backbone's features {features}",
                "anchors of that width, or `head: {project: true}`: a learned layer between them",
            )
        for name in self.groups:
            self.register_buffer(name, anchors[name].to(torch.float16).to(torch.float32))
        count = sum(len(anchors[name]) for name in CLASSES)
        self.project = nn.Linear(features, d, bias=False) if settings.project else None
        self.hidden, self.dropout = nn.Linear(d, settings.width), nn.Dropout(HIDDEN_DROPOUT)
        self.moments = nn.Linear(settings.width, 2 * d)
        self.concepts = nn.Linear(count, settings.width)
        self.concept_dropout = nn.AlphaDropout(CONCEPT_DROPOUT)
        self.linear = nn.Linear(d + settings.width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @property
    def class_anchors(self) -> Tensor:
        """(concepts, width): those of both classes, normal first."""
        return torch.cat([self.get_buffer(name) for name in CLASSES])

    @property
    def means(self) -> Tensor:
        """(groups, width): each group's mean anchor, of length 1; both classes come first."""
        return torch.stack([functional.normalize(self.get_buffer(name).mean(dim=0), dim=0) for name in self.groups])

    def encode(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ² (n, width)."""
        x = features.float()
        if self.project is not None:
            x = self.project(x)
        mean, log_variance = self.moments(self.dropout(functional.relu(self.hidden(x)))).chunk(2, dim=1)
        return mean, log_variance

    def forward(self, given: Tensor, bagwise: bool = False) -> Tensor:
        with torch.autocast(given.device.type, enabled=False):
            return self.read(self._draw(*self.encode(given)), bagwise)

    def read(self, z: Tensor, bagwise: bool = False) -> Tensor:
        """Logits (n,) of bottleneck vectors z (n, width); nothing flows back from the concepts into z."""
        scores = concept_scores(z, self.class_anchors, bagwise)
        x_c = self.concept_dropout(functional.elu(self.concepts(scores)))
        logits: Tensor = self.linear(torch.cat((z, x_c), dim=1)).squeeze(-1)
        return logits

    def vector(self, given: Tensor) -> Tensor:
        with torch.autocast(given.device.type, enabled=False):
            return self.encode(given)[0]

    def scores(self, given: Tensor) -> Tensor:
        """The concept map: standardised similarity (n, concepts) of each patch to each concept, normal ones first."""
        with torch.autocast(given.device.type, enabled=False):
            return concept_scores(self.vector(given), self.class_anchors)

    def _draw(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        if not self.training:
            return mean
        return mean + torch.randn_like(mean) * (log_variance / 2).exp()

    def answer(self, given: Tensor, targets: Tensor, frozen: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds `nce` and `kl`; see `HeadModule`. A share of votes counts as the label that it is nearer to."""
        with torch.autocast(given.device.type, enabled=False):
            mean, log_variance = self.encode(given)
            z = self._draw(mean, log_variance)
            terms = {"kl": self.settings.kl * kl_divergence(mean, log_variance)}
            terms["nce"] = self.settings.nce * contrast(z, (targets >= 0.5).long(), self.means)
            return self.read(z), terms


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence of N(μ, σ²) from the standard normal, a mean over patches and widths."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()


def contrast(z: Tensor, labels: Tensor, means: Tensor, bagwise: bool = False) -> Tensor:
    """Cross-entropy of cos(z, Ā) / 0.1 over all groups, with the label's own group as the answer.

    Args:
        z: (n, width).
        labels: (n,) whole numbers, indices of groups.
        means: (groups, width), of length 1.
        bagwise: as published: `z` are instances of one bag with one label, and the ten nearest to its anchor count.

    Raises: ValueError where a bag has more than one label.
    """
    logits = functional.normalize(z, dim=1) @ means.T / TEMPERATURE
    if bagwise:
        if not bool((labels == labels[0]).all()):
            raise ValueError(f"a bag has one label, not {sorted(set(labels.tolist()))}: call it once for each bag")
        near = logits[:, labels[0]].topk(min(NEAREST, len(z))).indices
        logits, labels = logits[near], labels[near]
    return functional.cross_entropy(logits, labels)


def concept_scores(z: Tensor, anchors: Tensor, bagwise: bool = False) -> Tensor:
    """56.3477 · z Aᵀ (n, concepts), standardised by the unbiased deviation over a patch's concepts, or (`bagwise`, as
    published) over all of the bag. No gradient."""
    scores = SCALE * z.detach() @ anchors.T
    over = (0, 1) if bagwise else (1,)
    deviation = scores.std(dim=over, keepdim=True) if scores.shape[1] > 1 or bagwise else torch.zeros_like(scores)
    return (scores - scores.mean(dim=over, keepdim=True)) / deviation.clamp_min(FLAT)


def read_anchors(path: Path | str) -> dict[str, Tensor]:
    """Text-derived anchors of a safetensors file, float32 by name.

    Raises: WeightsError for a file that is missing or no safetensors; DataError where it does not hold finite matrices
        `class_0`, `class_1` and `agnostic_…` of one width.
    """
    file = TensorFile(Path(path).expanduser())
    found = {name: file[name].float() for name in sorted(file.names)}
    problems = [f"missing: {name}" for name in CLASSES if name not in found]
    problems += _strange(found)
    widths = {tensor.shape[-1] for tensor in found.values()}
    if len(widths) > 1:
        problems.append(f"widths {', '.join(map(str, sorted(widths)))}: all matrices must have one")
    if problems:
        raise DataError(
            f"{path} holds no concept anchors",
            "a safetensors file of matrices (concepts, width): class_0 (normal), class_1 (atypical), agnostic_…",
            problems,
        )
    return found


def _strange(found: Mapping[str, Tensor]) -> list[str]:
    lines = []
    for name, tensor in found.items():
        if name not in CLASSES and not (name.startswith(AGNOSTIC) and name.isidentifier()):
            lines.append(f"{name}: neither class_0, class_1 nor agnostic_…")
        elif tensor.ndim != 2 or not tensor.numel():
            lines.append(f"{name}: {tuple(tensor.shape)} is no matrix (concepts, width)")
        elif not bool(torch.isfinite(tensor.to(torch.float16)).all()):
            lines.append(f"{name}: values that are not finite in half precision")
    return lines


def empty_anchors(settings: Concept, features: int, stored: Mapping[str, Sequence[int]] | None) -> dict[str, Tensor]:
    """Anchors of 0 in the shapes that they will have: of a fold model's `stored` tensors, or of prototypes."""
    shapes = {name: tuple(shape) for name, shape in (stored or {}).items() if name.startswith((*CLASSES, AGNOSTIC))}
    fits = set(CLASSES) <= shapes.keys() and {len(shape) for shape in shapes.values()} == {2}
    if not fits or len({shape[1] for shape in shapes.values()}) > 1:
        # Nothing is stored yet, or what is stored fits no head: the comparison of shapes will say so.
        shapes = dict.fromkeys(CLASSES, (settings.clusters, features))
    return {name: torch.zeros(shape) for name, shape in shapes.items()}
