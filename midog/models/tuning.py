"""What is trained inside a backbone: low-rank adapters, prompts, everything, the last blocks, or nothing.

Adapters are injected with peft for training; inference computes the merged weight itself and does without peft.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from midog.errors import UsageError, unknown
from midog.models.prompts import PART, START, Prompts, insert_prompts, prompted_blocks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from midog.models.backbones import Backbone

BLOCK_CONTAINERS = ("blocks", "stages", "layers")
"""timm's names for the sequence of blocks (ViT, MobileNet), or of stages (ConvNeXt, Swin)."""


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on linear layers: W = W₀ + s·B·A with A (rank, in), B (out, rank), B zero at the start.

    `lora` scales by s = alpha/rank, `rslora` by alpha/√rank; `dora` also learns each output's magnitude. `targets` are
    suffixes of module names (`attn.qkv`), or `record` for the backbone's own.

    Source: Hu et al. 2021 (LoRA); Kalajdzievski 2023 (rsLoRA); Liu et al. 2024, eq. 5 (DoRA).
    """

    kind: Literal["lora", "rslora", "dora"] = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "record"

    def __post_init__(self) -> None:
        if isinstance(self.targets, list):
            object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1:
            raise UsageError(f"tune.rank is {self.rank}", "a whole number from 1; 8 is common")
        if not self.alpha > 0:
            raise UsageError(f"tune.alpha is {self.alpha}", "a positive number; twice the rank is common")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"tune.dropout is {self.dropout}", "a number from 0 to below 1")
        if not self.targets:
            raise UsageError(
                "tune.targets is empty", "`record`, or suffixes of module names such as [attn.qkv, attn.proj]"
            )

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.kind == "rslora" else self.rank)


@dataclass(frozen=True)
class Full:
    """Every weight of the backbone is trained."""

    kind: Literal["full"] = "full"


@dataclass(frozen=True)
class Frozen:
    """Nothing in the backbone is trained: the head alone, a linear probe."""

    kind: Literal["head"] = "head"


@dataclass(frozen=True)
class Last:
    """The last `blocks` blocks (ViT, MobileNet) or stages (ConvNeXt) are trained, and the norms after them."""

    kind: Literal["last"] = "last"
    blocks: int = 2

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise UsageError(f"tune.blocks is {self.blocks}", "at least 1; to train the head alone: tune: head")


Tune = Lora | Prompts | Full | Frozen | Last
TUNES: dict[str, type[Any]] = {
    "lora": Lora,
    "rslora": Lora,
    "dora": Lora,
    "prompts": Prompts,
    "full": Full,
    "head": Frozen,
    "last": Last,
}


def trained_names(backbone: nn.Module, tune: Tune) -> frozenset[str]:
    """Names of the backbone's *own* parameters that this tuning trains (adapters and prompts are not among them).

    Raises: UsageError when there are fewer blocks than asked for.
    """
    if isinstance(tune, Full):
        return frozenset(name for name, _ in backbone.named_parameters())
    if not isinstance(tune, Last):
        return frozenset()
    children = dict(backbone.named_children())
    container = next((name for name in BLOCK_CONTAINERS if name in children), None)
    if container is None:
        raise UsageError(
            f"{type(backbone).__name__} has no sequence of blocks to take the last of", "tune: full, or lora"
        )
    blocks = [name for name, _ in children[container].named_children()]
    if tune.blocks > len(blocks):
        raise UsageError(f"tune.blocks is {tune.blocks}, the backbone has {len(blocks)}", f"at most {len(blocks)}")
    order = list(children)
    prefixes = [f"{container}.{name}." for name in blocks[-tune.blocks :]]
    prefixes += [f"{name}." for name in order[order.index(container) + 1 :]]
    return frozenset(name for name, _ in backbone.named_parameters() if name.startswith(tuple(prefixes)))


def adapted_layers(backbone: nn.Module, tune: Lora, record: Backbone) -> dict[str, nn.Linear]:
    """The linear layers that take adapters, by full name.

    A target matches whole components at the end of a name, and linear layers only: `proj` never means the convolution
    `patch_embed.proj`.

    Raises: UsageError when a target matches nothing (nearest names given), or when the rank exceeds a layer's width.
    """
    from torch import nn

    targets = record.lora_targets if isinstance(tune.targets, str) else tune.targets
    if isinstance(tune.targets, str) and tune.targets != "record":
        targets = (tune.targets,)
    linear = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    if not linear or not targets:
        raise UsageError(f"{record.name} has no linear layers to adapt with {tune.kind}", "tune: full, last or head")
    for target in targets:
        if not any(_matches(name, target) for name in linear):
            suffixes = {".".join(name.split(".")[-2:]) for name in linear}
            raise unknown(f"LoRA target in {record.name}", target, suffixes)
    chosen = {name: module for name, module in linear.items() if any(_matches(name, target) for target in targets)}
    narrow = [
        f"{name}: {module.in_features} to {module.out_features}"
        for name, module in chosen.items()
        if tune.rank > min(module.in_features, module.out_features)
    ]
    if narrow:
        raise UsageError(f"tune.rank {tune.rank} exceeds the width of {len(narrow)} layers", "a smaller rank", narrow)
    return chosen


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def apply_tuning(backbone: nn.Module, tune: Tune, record: Backbone) -> None:
    """Freeze what is not trained; inject adapters or prompts, in place. They draw from torch's current generator.

    Raises: UsageError as `trained_names`, `adapted_layers` and `prompted_blocks` do.
    """
    trained = trained_names(backbone, tune)
    layers = adapted_layers(backbone, tune, record) if isinstance(tune, Lora) else {}
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name in trained)
    if isinstance(tune, Lora):
        from peft import LoraConfig, inject_adapter_in_model

        config = LoraConfig(
            r=tune.rank,
            lora_alpha=tune.alpha,  # type: ignore[arg-type]  # peft divides by it; a fraction is fine
            lora_dropout=tune.dropout,
            # One regular expression of exact names: a list would be matched by suffix.
            target_modules="|".join(re.escape(name) for name in layers),
            use_rslora=tune.kind == "rslora",
            use_dora=tune.kind == "dora",
            bias="none",
        )
        inject_adapter_in_model(config, backbone)
    elif isinstance(tune, Prompts):
        from torch.nn.init import trunc_normal_

        insert_prompts(backbone, tune.count)
        for block in prompted_blocks(backbone).values():
            trunc_normal_(block.get_parameter(PART), std=START)


@contextmanager
def untuned(backbone: nn.Module) -> Iterator[None]:
    """The backbone without its adapters for a while; whatever else tunes it stays."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in backbone.modules() if isinstance(module, BaseTunerLayer)]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


PEFT_NAMES = {
    ".base_layer.": ".",
    ".lora_A.default.weight": ".lora_A",
    ".lora_B.default.weight": ".lora_B",
    ".lora_magnitude_vector.default.weight": ".magnitude",
}
ADAPTER_PARTS = ("lora_A", "lora_B", "magnitude")


def is_added(name: str) -> bool:
    """True for a tensor that tuning adds to a backbone: part of an adapter, or prompts. Takes a plain name."""
    return name.rpartition(".")[2] in (*ADAPTER_PARTS, PART)


def added_tensors(backbone: nn.Module, tune: Tune, adapted: Iterable[str]) -> dict[str, Tensor]:
    """What tuning adds to a backbone, by plain name, as shapes without values: the adapters of the linear layers
    `adapted`, or every block's prompts."""
    import torch

    added: dict[str, Tensor] = {}
    if isinstance(tune, Prompts):
        blocks = prompted_blocks(backbone)
        prompts = torch.empty(tune.count, cast(int, backbone.embed_dim), device="meta")
        added = {f"{block}.{PART}": prompts for block in blocks}
    elif isinstance(tune, Lora):
        state = backbone.state_dict()
        for module in adapted:
            weight = state.get(f"{module}.weight")
            rows, columns = (0, 0) if weight is None else weight.shape[:2]
            added[f"{module}.lora_A"] = torch.empty(tune.rank, columns, device="meta")
            added[f"{module}.lora_B"] = torch.empty(rows, tune.rank, device="meta")
            if tune.kind == "dora":
                added[f"{module}.magnitude"] = torch.empty(rows, device="meta")
    return added


def plain_name(name: str) -> str:
    """A parameter's name without peft's wrapping: timm's own, or `<module>.lora_A`, `.lora_B`, `.magnitude`."""
    for wrapped, plain in PEFT_NAMES.items():
        name = name.replace(wrapped, plain)
    return name


def merge_adapter(weight: Tensor, adapter: Mapping[str, Tensor], tune: Lora) -> None:
    """Turn W₀ into the weight that a plain linear layer needs to answer as the adapted one does, in place.

    Args:
        weight: W₀ (out, in) float32; becomes V = W₀ + s·B·A, for DoRA each row of V scaled to the length `magnitude`.
        adapter: `lora_A` (rank, in), `lora_B` (out, rank) and, for DoRA, `magnitude` (out,), float32.
        tune: Kind and scale.

    Source: Hu et al. 2021, eq. 3; Liu et al. 2024, eq. 5.
    """
    import torch

    weight.addmm_(adapter["lora_B"], adapter["lora_A"], alpha=tune.scale)
    if tune.kind == "dora":
        length = torch.linalg.vector_norm(weight, dim=1)
        weight.mul_((adapter["magnitude"] / length).unsqueeze(1))
