"""The kinds of heads: their settings by name, and how one is built for a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from midog.errors import UsageError
from midog.models.heads.base import HeadModule
from midog.models.heads.concept import PROTOTYPES, Concept, ConceptHead, empty_anchors, read_anchors
from midog.models.heads.joint import GRAM, Joint, JointHead
from midog.models.heads.linear import Linear, LinearHead, feature_width, prefix_rows
from midog.models.tuning import Lora, Tune

Head = Linear | Joint | Concept
HEADS: dict[str, type[Any]] = {"linear": Linear, "joint": Joint, "concept": Concept}


def check_head(head: Head, tune: Tune) -> None:
    """Raises: UsageError for a Gram term beside a tuning that cannot be switched off."""
    if isinstance(head, Joint) and not isinstance(tune, Lora) and head.gram not in ("auto", 0):
        raise UsageError(
            f"head.gram is {head.gram}, and tune: {tune.kind} leaves no untuned backbone to compare with",
            "tune: lora, rslora or dora, whose adapters can be switched off; or head: {gram: 0}",
        )


def build_head(
    head: Head, tune: Tune, pooling: str, backbone: nn.Module, stored: Mapping[str, Sequence[int]] | None = None
) -> HeadModule:
    """The head on its backbone, untrained.

    Args:
        stored: shapes of the head's tensors in a fold model's file; without it, concept anchors come from their file.

    Raises: what a head's settings raise that do not fit the backbone; DataError or WeightsError for an anchors' file.
    """
    features = feature_width(backbone, pooling)
    if isinstance(head, Joint):
        usual = GRAM if isinstance(tune, Lora) else 0.0
        gram = usual if isinstance(head.gram, str) else float(head.gram)
        return JointHead(int(backbone.num_features), prefix_rows(backbone), head, gram)  # type: ignore[arg-type]
    if isinstance(head, Concept):
        known = stored is None and head.anchors != PROTOTYPES
        return ConceptHead(
            features, head, read_anchors(head.anchors) if known else empty_anchors(head, features, stored)
        )
    return LinearHead(features, head)
