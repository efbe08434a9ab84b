"""A member's network: backbone + tuning + head + image, ending in one logit of *atypical*.

`Classifier` is what training works on and what prediction calls. A fold model's file holds only what differs from the
pretrained state; `Inference` puts the two together again and switches between fold models, without peft.

The pretrained state is one and the same for every member on a backbone, whatever it tunes: parameters rounded to
float16 (what the bundle stores), buffers as published. Frozen parameters are rounded before training, so nothing moves
at packing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from midog.errors import UsageError, WeightsError
from midog.files import sha256_json
from midog.models.backbones import build_backbone, empty_backbone, find_backbone, list_backbones
from midog.models.heads.linear import Head, build_head, feature_width, pool_features
from midog.models.network import Network
from midog.models.preprocess import input_size, prepare
from midog.models.prompts import Prompts, insert_prompts
from midog.models.tuning import (
    ADAPTER_PARTS,
    Lora,
    Tune,
    added_tensors,
    apply_tuning,
    is_added,
    merge_adapter,
    plain_name,
    trained_names,
)
from midog.models.weights import TensorFile, mismatches, write_tensors

__all__ = [
    "Classifier",
    "Head",
    "Inference",
    "Network",
    "Tune",
    "backbone_key",
    "backbone_state",
    "build_classifier",
    "fold_state",
    "pretrained_state",
    "round_adapters",
    "save_fold",
]

BACKBONE, HEAD = "backbone.", "head."


class Classifier(nn.Module):
    """(n, 3, s, s) float to (n,) logits of *atypical*. Build it with `build_classifier`, or get it from `Inference`."""

    def __init__(self, network: Network, backbone: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.backbone = backbone
        self.head = build_head(network.head, feature_width(backbone, network.backbone.pooling))
        # Convolutions on a processor and on tensor cores are two to three times faster with channels last.
        self.format = torch.contiguous_format if network.backbone.patch else torch.channels_last
        self.backbone.to(memory_format=self.format)  # type: ignore[call-overload]
        self.pretrained: dict[str, Tensor] = {}
        """Pretrained state of what training may change: rounded parameters (float16 where exact) and buffers."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=self.format)
        logits: Tensor = self.head(pool_features(self.backbone, x, self.network.backbone.pooling))
        return logits

    def prepare(self, patches: NDArray[np.uint8] | Tensor) -> Tensor:
        """(n, 128, 128, 3) uint8 RGB, an array or a tensor, to (n, 3, s, s) float32 on this network's device."""
        device = next(self.head.parameters()).device
        return prepare(patches, self.network.image, self.network.backbone, device)

    def train(self, mode: bool = True) -> Classifier:
        """As ever, but batch norms whose parameters are frozen keep their pretrained statistics."""
        super().train(mode)
        if mode:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                    module.eval()
        return self


def build_classifier(network: Network, weights: Path | None = None) -> Classifier:
    """A classifier ready for training: pretrained, adapters or prompts injected, the rest frozen and rounded.

    Args:
        network: What to build. With `pretrained: random` the same seed gives the same bytes.
        weights: Folder (or file) of pretrained weights; see `weights.find_weights`.

    Raises: UsageError for settings that do not fit the backbone; WeightsError for missing or foreign weights.
    """
    input_size(network.image, network.backbone)
    backbone = build_backbone(network.backbone, network.pretrained, network.seed, weights)
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
    classifier.pretrained = pretrained
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
    """All that a fold model adds to the pretrained state: each parameter and buffer that differs from it, on the CPU.

    Names are timm's under `backbone.`, the head's under `head.`; adapters are `<module>.lora_A` (rank, in), `.lora_B`
    (out, rank) and, for DoRA, `.magnitude` (out,); prompts are `blocks.N.prompts` (count, width).
    """
    state = {}
    trained = {name for name, parameter in classifier.backbone.named_parameters() if parameter.requires_grad}
    for wrapped, value in classifier.backbone.state_dict().items():
        name = plain_name(wrapped)
        before = classifier.pretrained.get(name)
        if before is None and wrapped not in trained:
            continue  # frozen: still the pretrained bytes
        after = value.detach().cpu()
        if before is None or not torch.equal(after, before.cpu().to(after.dtype)):
            state[BACKBONE + name] = _half(after) if is_added(name) else _copy(after)
    state.update({HEAD + name: value.detach().cpu().clone() for name, value in classifier.head.state_dict().items()})
    return state


def round_adapters(classifier: Classifier) -> None:
    """Round trained adapters and prompts to float16, in place.

    A fold model is rounded when its training is over and before it is scored, so that it scores as it is stored: half
    the bytes in a bundle that holds each adapter and each backbone in the same precision. Our choice.
    """
    with torch.no_grad():
        for name, parameter in classifier.backbone.named_parameters():
            if is_added(plain_name(name)):
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


class Inference:
    """One backbone in memory, and the fold models that take turns in it.

    Args:
        network: The backbone to build; each fold file brings its own tuning, head and image.
        backbone_file: The pretrained state: a safetensors file (memory-mapped), a mapping of tensors, or None where the
            fold files hold everything. Tensors that every fold file overrides may be absent.
        device: Where the network lives.
    """

    def __init__(
        self, network: Network, backbone_file: Path | Mapping[str, Tensor] | None, device: torch.device | str = "cpu"
    ) -> None:
        self.base: TensorFile | Mapping[str, Tensor]
        if backbone_file is None or isinstance(backbone_file, Mapping):
            self.base = backbone_file or {}
        else:
            self.base = TensorFile(backbone_file)
        self._module = Classifier(network, empty_backbone(network.backbone)).requires_grad_(False).eval().to(device)
        self._plain: set[str] = set()  # names that hold their pretrained bytes at this moment
        self._remove_prompts: Callable[[], None] | None = None
        self._ready = False

    @property
    def module(self) -> Classifier:
        """The classifier of the fold model switched to last, in eval mode."""
        if not self._ready:
            raise RuntimeError("switch to a fold model first")
        return self._module

    def switch(self, fold_file: Path | str) -> Classifier:
        """Turn into the fold model of `fold_file`.

        Every tensor is computed from the files, never from what was there before: A, B, A gives equal bytes. Nothing
        changes when the file turns out not to fit.

        Raises: WeightsError when the file is damaged, foreign, of another backbone, or leaves a tensor without a value.
        """
        fold = TensorFile(fold_file)
        network = self._network(fold)
        backbone = self._module.backbone
        stored = {name.removeprefix(BACKBONE) for name in fold.names if name.startswith(BACKBONE)}
        adapted = {name.rpartition(".")[0] for name in stored if name.endswith(".lora_A")}
        head = build_head(network.head, feature_width(backbone, network.backbone.pooling))
        self._check(fold, stored, adapted, head, network)
        self._ready = False
        self._fit_prompts(network.tune)
        with torch.no_grad():
            for name, target in backbone.state_dict().items():
                module, _, last = name.rpartition(".")
                merged = last == "weight" and module in adapted
                if not merged and name not in stored and name in self._plain:
                    continue
                self._plain.discard(name)
                value = fold[BACKBONE + name] if name in stored else self.base[name]
                target.copy_(value.to(target.device))  # half the bytes to a GPU, widened there
                if merged:
                    merge_adapter(target, self._adapter(fold, module, target.device), cast(Lora, network.tune))
                elif name not in stored:
                    self._plain.add(name)
            for name, target in head.state_dict().items():
                target.copy_(fold[HEAD + name])
        self._module.head = head.requires_grad_(False).eval().to(next(backbone.parameters()).device)
        self._module.network = network
        self._ready = True
        return self._module

    def _fit_prompts(self, tune: Tune) -> None:
        """Take out the last fold model's prompts, and make room for this one's."""
        if self._remove_prompts is not None:
            self._remove_prompts()
            self._remove_prompts = None
        if isinstance(tune, Prompts):
            self._remove_prompts = insert_prompts(self._module.backbone, tune.count)
            self._module.requires_grad_(False)

    def _network(self, fold: TensorFile) -> Network:
        try:
            network = Network.from_dict(fold.about["network"])
        except (KeyError, TypeError, UsageError) as error:
            problem = f"{fold.path} is no fold model of this project ({error})"
            raise WeightsError(problem, "midog train writes them as <member>/fold_<k>/model.safetensors") from error
        built = self._module.network.backbone
        if (network.backbone.timm, network.backbone.timm_kwargs) != (built.timm, built.timm_kwargs):
            raise WeightsError(f"{fold.path} is a fold model on {network.backbone.name}, not on {built.name}")
        return network

    def _adapter(self, fold: TensorFile, module: str, device: torch.device) -> dict[str, Tensor]:
        parts = [part for part in ADAPTER_PARTS if f"{BACKBONE}{module}.{part}" in fold]
        return {part: fold[f"{BACKBONE}{module}.{part}"].to(device, torch.float32) for part in parts}

    def _check(self, fold: TensorFile, stored: set[str], adapted: set[str], head: nn.Module, network: Network) -> None:
        """Every name and shape, before anything is written."""
        backbone = self._module.backbone
        state = {name: value for name, value in backbone.state_dict().items() if not is_added(name)}
        try:
            added = added_tensors(backbone, network.tune, adapted)
        except UsageError as error:
            raise WeightsError(f"{fold.path} is no fold model of this project ({error.problem})") from error
        wanted = {BACKBONE + name: tensor for name, tensor in {**state, **added}.items()}
        wanted.update({HEAD + name: tensor for name, tensor in head.state_dict().items()})
        given = {name: fold.shape(name) for name in fold.names}
        for name in state:
            if name not in stored and name in self.base:
                shape = self.base.shape(name) if isinstance(self.base, TensorFile) else tuple(self.base[name].shape)
                given[BACKBONE + name] = shape
        details = mismatches(wanted, given)
        if details:
            raise WeightsError(
                f"{fold.path} and the backbone's file do not make a whole {network.backbone.name}",
                "the files belong to different runs: bundle the blend again",
                details,
            )
