"""A member's network: backbone + tuning + head + image, ending in one logit of *atypical*.

`Classifier` is what training works on and what prediction calls. A fold model's file holds only what differs from the
pretrained state; `inference.Inference` puts the two together again and switches between them, without peft.

The pretrained state is one and the same for every member on a backbone, whatever it tunes: parameters rounded to
float16 (what the bundle stores), buffers as published. Frozen parameters are rounded before training, so nothing moves
at packing. Where a start changed the backbone first, its fold model's file holds all of it, and needs no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from midog.files import sha256_json
from midog.models.backbones import find_backbone, list_backbones
from midog.models.build import build_backbone
from midog.models.heads.base import HeadModule
from midog.models.heads.kinds import Head
from midog.models.heads.linear import pool, token_rows
from midog.models.network import Network
from midog.models.preprocess import input_size, prepare, prepare_pixels
from midog.models.tuning import (
    Tune,
    apply_tuning,
    is_added,
    plain_name,
    trained_names,
    untuned,
)
from midog.models.weights import write_tensors

__all__ = [
    "Classifier",
    "Head",
    "Network",
    "Tune",
    "backbone_key",
    "backbone_state",
    "build_classifier",
    "fold_state",
    "pretrained_state",
    "round_trained",
    "save_fold",
]

BACKBONE, HEAD = "backbone.", "head."


class Classifier(nn.Module):
    """(n, 3, s, s) float to (n,) logits of *atypical*. Build it with `build_classifier`, or get it from `Inference`."""

    def __init__(self, network: Network, backbone: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.backbone = backbone
        self.head: HeadModule = network.build_head(backbone)
        # Convolutions on a processor and on tensor cores are two to three times faster with channels last.
        self.format = torch.contiguous_format if network.backbone.patch else torch.channels_last
        self.backbone.to(memory_format=self.format)  # type: ignore[call-overload]
        self.pretrained: dict[str, Tensor] = {}
        """Pretrained state of what training may change: rounded parameters (float16 where exact) and buffers."""
        self.whole = False
        """True where the backbone is no longer the pretrained one: a fold model's file then holds all of it."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.look(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """(n, 3, s, s) float to (n, width) pooled features, whatever the head is given."""
        return pool(self.backbone, self._see(x), self.network.backbone.pooling)

    def look(self, x: Tensor) -> Tensor:
        """(n, 3, s, s) float to what the head needs: pooled features, or tokens."""
        seen = self._see(x)
        if self.head.needs == "tokens":
            return token_rows(self.backbone, seen)
        return pool(self.backbone, seen, self.network.backbone.pooling)

    def features_and_look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both in one pass: pooled features, and what the head needs."""
        seen = self._see(x)
        features = pool(self.backbone, seen, self.network.backbone.pooling)
        return features, token_rows(self.backbone, seen) if self.head.needs == "tokens" else features

    def _see(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=self.format)
        seen: Tensor = self.backbone.forward_features(x)  # type: ignore[operator]
        return seen

    def answer(self, x: Tensor, targets: Tensor, given: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """(n, 3, s, s) float and targets (n,) to logits (n,) and the head's own loss terms; see `HeadModule.answer`.
        `given` is what `look` makes of x, where that is known."""
        frozen = self.look_untuned(x) if self.head.wants_frozen else None
        return self.head.answer(self.look(x) if given is None else given, targets, frozen)

    @torch.no_grad()
    def look_untuned(self, x: Tensor) -> Tensor:
        """As `look`, without adapters and dropout."""
        self.backbone.eval()
        try:
            with untuned(self.backbone):
                return self.look(x)
        finally:
            self.train(self.training)

    def prepare(self, patches: NDArray[np.uint8] | Tensor) -> Tensor:
        """(n, 128, 128, 3) uint8 RGB, an array or a tensor, to (n, 3, s, s) float32 on this network's device."""
        device = next(self.head.parameters()).device
        network = self.network
        return prepare(patches, network.image, network.backbone, device, network.harmonise)

    def prepare_pixels(self, x: Tensor) -> Tensor:
        """(n, 3, 128, 128) float in 0…1 to (n, 3, s, s), with gradients: `prepare` for what an attack changes."""
        return prepare_pixels(x, self.network.image, self.network.backbone, self.network.harmonise)

    def train(self, mode: bool = True) -> Classifier:
        """As ever, but batch norms whose parameters are frozen keep their pretrained statistics."""
        super().train(mode)
        if mode:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                    module.eval()
        return self


Begin = Callable[[nn.Module], Mapping[str, Tensor] | None]
"""Changes a pretrained backbone in place before anything is frozen; returns a state for the head, or None."""
Measure = Callable[[nn.Module], Mapping[str, Tensor]]
"""Buffers of the head by name, as the backbone says before it is tuned; leaves it as it is."""


def build_classifier(
    network: Network, weights: Path | None = None, begin: Begin | None = None, measure: Measure | None = None
) -> Classifier:
    """A classifier ready for training: pretrained, adapters or prompts injected, the rest frozen and rounded.

    Args:
        network: What to build. With `pretrained: random` the same seed gives the same bytes.
        weights: Folder (or file) of pretrained weights; see `weights.find_weights`.
        begin: What happens to the backbone before it is tuned, such as a start.
        measure: What the head takes from the backbone as it is then, such as prototypes.

    Raises: UsageError for settings that do not fit the backbone; WeightsError for missing or foreign weights.
    """
    input_size(network.image, network.backbone)
    backbone = build_backbone(network.backbone, network.pretrained, network.seed, weights)
    head = begin(backbone) if begin is not None else None
    measured = measure(backbone) if measure is not None else {}
    trained = trained_names(backbone, network.tune)
    pretrained = {}
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            rounded = round_parameter(parameter)
            if name in trained:
                pretrained[name] = rounded
            else:
                parameter.copy_(rounded)
    pretrained.update({name: buffer.clone() for name, buffer in _buffers(backbone)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(network.seed)
        apply_tuning(backbone, network.tune, network.backbone)
    classifier = Classifier(network, backbone)
    if head is not None:
        classifier.head.load_state_dict(head)
    for name, value in measured.items():
        classifier.head.get_buffer(name).copy_(value)
    classifier.whole = begin is not None
    classifier.pretrained = {} if classifier.whole else pretrained
    return classifier.train()


def round_parameter(parameter: Tensor) -> Tensor:
    """A copy in float16, or in float32 where float16 would overflow."""
    rounded = parameter.detach().to(torch.float16)
    return rounded if bool(torch.isfinite(rounded).all()) else parameter.detach().to(torch.float32, copy=True)


def _buffers(backbone: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that a state dict holds."""
    parameters = {name for name, _ in backbone.named_parameters()}
    return ((name, value) for name, value in backbone.state_dict().items() if name not in parameters)


def fold_state(classifier: Classifier) -> dict[str, Tensor]:
    """All that a fold model adds to the pretrained state: each parameter and buffer that differs from it, on the CPU;
    after a start the whole backbone. Parameters are float16 where that holds the same numbers (`round_trained`).

    Names are timm's under `backbone.`, the head's under `head.`; adapters are `<module>.lora_A` (rank, in), `.lora_B`
    (out, rank) and, for DoRA, `.magnitude` (out,); prompts are `blocks.N.prompts` (count, width).
    """
    state = {}
    parameters = dict(classifier.backbone.named_parameters())
    for wrapped, value in classifier.backbone.state_dict().items():
        name = plain_name(wrapped)
        before = classifier.pretrained.get(name)
        frozen = wrapped in parameters and not parameters[wrapped].requires_grad
        if before is None and frozen and not classifier.whole:
            continue  # still the pretrained bytes
        after = value.detach().cpu()
        if before is None or not torch.equal(after, before.cpu().to(after.dtype)):
            state[BACKBONE + name] = _half(after) if wrapped in parameters else _copy(after)
    state.update({HEAD + name: _half(value.detach().cpu()) for name, value in classifier.head.state_dict().items()})
    return state


def round_trained(classifier: Classifier) -> None:
    """Round what was trained to float16, in place.

    A fold model is rounded when its training is over and before it is scored, so that it scores as it is stored: half
    the bytes in a bundle that holds fold models and backbones in the same precision. Our choice.
    """
    with torch.no_grad():
        for parameter in classifier.parameters():
            if parameter.requires_grad:
                parameter.copy_(round_parameter(parameter))


def _half(value: Tensor) -> Tensor:
    """A copy in float16 where that holds the same numbers, else as it is."""
    half = _copy(value).to(torch.float16)
    return half if torch.equal(half.to(value.dtype), value) else _copy(value)


def _copy(value: Tensor) -> Tensor:
    return value.clone(memory_format=torch.contiguous_format)


def backbone_state(classifier: Classifier) -> dict[str, Tensor]:
    """The pretrained state under timm's names, CPU: float16 parameters, buffers as published. A bundle stores it once.

    It depends on the backbone, the weights (or the seed of random ones) and on nothing that was trained.
    """
    state = {}
    for wrapped, value in classifier.backbone.state_dict().items():
        name = plain_name(wrapped)
        if is_added(name):
            continue
        before = classifier.pretrained.get(name)
        kept = (round_parameter(value) if before is None else before).cpu()
        state[name] = kept.clone(memory_format=torch.contiguous_format)
    return state


def pretrained_state(network: Network, weights: Path | None = None) -> dict[str, Tensor]:
    """`backbone_state` of a network that is not being trained: what packing needs, without adapters or peft."""
    backbone = build_backbone(network.backbone, network.pretrained, network.seed, weights)
    state = {name: round_parameter(parameter) for name, parameter in backbone.named_parameters()}
    return {**state, **{name: buffer.clone() for name, buffer in _buffers(backbone)}}


def backbone_key(network: Network) -> str:
    """A file name for a pretrained state: networks share the state exactly when they have the same key."""
    record = network.backbone
    name = record.name.replace("/", "_")
    if network.pretrained == "record" and record.name in list_backbones() and record == find_backbone(record.name):
        return name
    start = {"random": f"random:{network.seed}", "record": "record"}.get(network.pretrained, network.pretrained)
    return f"{name}-{sha256_json([record.timm, record.timm_kwargs, record.source, record.file, start])[:8]}"


def save_fold(classifier: Classifier, path: Path | str, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write a fold model's file atomically: its `fold_state`, its network, and `metadata` (plain JSON)."""
    about = {**(metadata or {}), "content": "fold model", "network": classifier.network.to_dict()}
    return write_tensors(path, fold_state(classifier), about)
