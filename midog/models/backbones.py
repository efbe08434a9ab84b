"""The registry of backbones: what each is and where its weights come from.

A backbone is a record of data (`records/`), not a class. Three ways to name one: a registry name (`virchow2`), any
model of timm (`timm/<name>`), or an inline record (a mapping with at least `timm`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from midog.errors import UsageError, unknown
from midog.models.layouts import LAYOUTS
from midog.models.records import natural, pathology
from midog.models.timm_import import create_network, import_timm

POOLINGS = ("cls", "cls+mean", "avg")
INTERPOLATIONS = ("bicubic", "bilinear")
TIMM_PREFIX = "timm/"
VIT_LIKE_TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True)
class Backbone:
    """A network without its head, as data.

    `timm` and `timm_kwargs` build it (layer classes by name); `source`, `revision` and `file` say where the published
    weights are; `parameters` counts it without classifier (None: not recorded); `features` is the width after pooling.
    `input_size` is the side in pixels of its native square input, `patch` a ViT's patch side (None: a CNN), and
    `prefix_tokens` how many tokens (CLS, registers) stand before the patch tokens. `mean` and `std` apply to RGB in
    0…1. `lora_targets` are suffixes of module names. `sha256`, where recorded, is the weight file's. `layout` says by
    whose names the published file calls its tensors (`layouts.LAYOUTS`), and `prefix` which of them are this network's:
    it is cut off, and what does not start with it is left out.
    """

    name: str
    timm: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooling: str
    source: str = ""
    file: str = ""
    revision: str = "main"
    licence: str = "unknown"
    gated: bool = False
    sha256: str = ""
    parameters: int | None = None
    features: int | None = None
    patch: int | None = None
    interpolation: str = "bicubic"
    prefix_tokens: int = 0
    timm_kwargs: dict[str, Any] = field(default_factory=dict)
    lora_targets: tuple[str, ...] = ()
    layout: str = "timm"
    prefix: str = ""

    def __post_init__(self) -> None:
        for name in ("mean", "std", "lora_targets"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.pooling not in POOLINGS:
            raise unknown("pooling", str(self.pooling), POOLINGS)
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", str(self.interpolation), INTERPOLATIONS)
        if self.layout not in LAYOUTS:
            raise unknown("layout", str(self.layout), LAYOUTS)
        if self.pooling != "avg" and not self.prefix_tokens:
            raise UsageError(
                f"backbone {self.name}: pooling {self.pooling} needs a CLS token, and the network has none",
                "pooling: avg",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `find_backbone` reads it back equal."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }


FIELDS = tuple(item.name for item in dataclasses.fields(Backbone))
LATER = {"layout", "prefix"}
"""Fields that records stored by the first release lack; their defaults are what that release did."""


@cache
def _registry() -> dict[str, Backbone]:
    records = (*pathology.RECORDS, *natural.RECORDS)
    return {record["name"]: Backbone(**record) for record in records}


def list_backbones() -> tuple[str, ...]:
    """Names of the registry: pathology first, micro-models of the tests last."""
    return tuple(_registry())


def find_backbone(name_or_record: str | Mapping[str, Any] | Backbone) -> Backbone:
    """The record of a registry name, of `timm/<name>`, or of an inline mapping.

    Capitals and hyphens are as good as the registry's own spelling: `UNI2-h` is `uni2_h`. An inline record needs
    `timm`; what it leaves out is derived from that timm model.

    Raises: UsageError for an unknown name or key, with the nearest valid one.
    """
    if isinstance(name_or_record, Backbone):
        return name_or_record
    if isinstance(name_or_record, str):
        name = name_or_record if name_or_record in _registry() else name_or_record.lower().replace("-", "_")
        if name in _registry():
            return _registry()[name]
        if name_or_record.startswith(TIMM_PREFIX):
            return _derived(name_or_record.removeprefix(TIMM_PREFIX), {})
        problem = unknown("backbone", name_or_record, list_backbones())
        raise UsageError(problem.problem, f"{problem.fix} (timm/NAME takes any model of timm)")
    record = dict(name_or_record)
    for key in record:
        if key not in FIELDS:
            raise unknown("key of an inline backbone", str(key), FIELDS)
    if not record.get("timm"):
        raise UsageError("an inline backbone names no timm architecture", "add `timm: vit_base_patch16_224`")
    if set(FIELDS) - set(record) <= LATER:
        return Backbone(**record)
    derived = _derived(str(record.pop("timm")), dict(record.pop("timm_kwargs", None) or {}), record.get("pooling"))
    return dataclasses.replace(derived, **record)


def _derived(timm_name: str, kwargs: dict[str, Any], pooling: str | None = None) -> Backbone:
    """The record that timm's own configuration implies for one of its models; `pooling` None takes timm's."""
    import torch
    from torch import nn

    from midog.models.heads.linear import feature_width

    import_timm()
    from timm.models.convnext import ConvNeXt
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    with torch.device("meta"):
        model: Any = create_network(timm_name, kwargs)
    config: Any = model.pretrained_cfg
    embedding = getattr(model, "patch_embed", None)
    patch = getattr(embedding, "patch_size", None)
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    pool = getattr(model, "global_pool", "avg")
    pooling = pooling or ("cls" if prefix and pool in ("token", "") else "avg")
    if isinstance(model, VisionTransformer | Eva) and not model.dynamic_img_size:
        kwargs = {**kwargs, "dynamic_img_size": True}
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    targets = tuple(target for target in VIT_LIKE_TARGETS if any(name.endswith(f".{target}") for name in linear))
    if isinstance(model, ConvNeXt) and not targets and "conv_mlp" not in kwargs:
        # The small ones are built with 1x1 convolutions: the same numbers, but only linear layers take adapters.
        return _derived(timm_name, {**kwargs, "conv_mlp": False}, pooling)
    return Backbone(
        name=f"{TIMM_PREFIX}{timm_name}",
        timm=timm_name,
        source=str(config.get("hf_hub_id") or ""),
        file="model.safetensors",
        licence=str(config.get("license") or "unknown"),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        features=feature_width(model, pooling),
        input_size=int(config["input_size"][-1]),
        patch=int(patch[0]) if patch else None,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"] if config["interpolation"] in INTERPOLATIONS else "bicubic",
        pooling=pooling,
        prefix_tokens=prefix,
        timm_kwargs=kwargs,
        lora_targets=targets,
    )
