"""What fixes a fold model's shape and its starting point, as plain settings that read back from JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from midog.errors import UsageError, unknown
from midog.models.backbones import Backbone, find_backbone
from midog.models.harmonise import HARMONISERS, CombatFeatures, Harmonise
from midog.models.heads.base import HeadModule
from midog.models.heads.kinds import HEADS, Head, build_head, check_head
from midog.models.heads.linear import Linear
from midog.models.preprocess import Image
from midog.models.tuning import TUNES, Full, Tune


@dataclass(frozen=True)
class Network:
    """What fixes a fold model's shape and its starting point; `seed` draws random weights and adapters."""

    backbone: Backbone
    pretrained: str = "record"
    image: Image = field(default_factory=Image)
    tune: Tune = field(default_factory=Full)
    head: Head = field(default_factory=Linear)
    seed: int = 0
    harmonise: Harmonise | None = None

    def __post_init__(self) -> None:
        if isinstance(self.harmonise, CombatFeatures) and self.head.kind != "linear":
            raise UsageError(
                f"harmonise: combat fits a linear head again, and the head is {self.head.kind}", "head: linear"
            )
        check_head(self.head, self.tune)

    def build_head(self, backbone: nn.Module, stored: Mapping[str, Sequence[int]] | None = None) -> HeadModule:
        """Its head, untrained, on its backbone; see `heads.kinds.build_head`."""
        return build_head(self.head, self.tune, self.backbone.pooling, backbone, stored)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `from_dict` reads it back equal."""
        return {
            "backbone": self.backbone.to_dict(),
            "pretrained": self.pretrained,
            "image": dataclasses.asdict(self.image),
            "tune": _plain(self.tune),
            "head": _plain(self.head),
            "seed": self.seed,
            # Absent where it is off: such fold models stay what they were before there was any.
            **({"harmonise": _plain(self.harmonise)} if self.harmonise is not None else {}),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Network:
        """Raises: UsageError for unknown keys, with the nearest valid one."""
        _check_keys("network", content, {item.name for item in dataclasses.fields(cls)})
        return cls(
            backbone=find_backbone(content["backbone"]),
            pretrained=str(content.get("pretrained", "record")),
            image=_settings("image", Image, content.get("image", {})),
            tune=_by_kind("tune", TUNES, content.get("tune", {"kind": "full"})),
            head=_by_kind("head", HEADS, content.get("head", {"kind": "linear"})),
            seed=int(content.get("seed", 0)),
            harmonise=_by_kind("harmonise", HARMONISERS, content["harmonise"]) if "harmonise" in content else None,
        )


def _plain(settings: Any) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(settings).items()
    }


def _check_keys(what: str, content: Mapping[str, Any], names: set[str]) -> None:
    for key in content:
        if key not in names:
            raise unknown(f"key of {what}", str(key), names)


def _settings(what: str, kind: type[Any], content: Mapping[str, Any]) -> Any:
    _check_keys(what, content, {item.name for item in dataclasses.fields(kind)})
    return kind(**content)


def _by_kind(what: str, kinds: Mapping[str, type[Any] | None], content: Mapping[str, Any]) -> Any:
    kind = str(content.get("kind", ""))
    if (settings := kinds.get(kind)) is None:
        raise unknown(f"{what}.kind", kind, kinds)
    return _settings(what, settings, content)
