"""Fold models on one backbone, without peft: each computed from the files when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from midog.errors import UsageError, WeightsError
from midog.models.build import empty_backbone
from midog.models.classifier import BACKBONE, HEAD, Classifier
from midog.models.harmonise import CombatFeatures
from midog.models.heads.base import HeadModule
from midog.models.heads.combat import CombatHead
from midog.models.heads.linear import Linear, feature_width
from midog.models.network import Network
from midog.models.prompts import Prompts, insert_prompts
from midog.models.tuning import ADAPTER_PARTS, Lora, Tune, added_tensors, is_added, merge_adapter
from midog.models.weights import TensorFile, mismatches


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
        # Any head will do until a fold file brings its own.
        network = replace(network, head=Linear())
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
        head = self._head(fold, network)
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

    def _head(self, fold: TensorFile, network: Network) -> HeadModule:
        backbone = self._module.backbone
        shapes = {name.removeprefix(HEAD): fold.shape(name) for name in fold.names if name.startswith(HEAD)}
        try:
            head = network.build_head(backbone, shapes)
        except UsageError as error:
            raise WeightsError(f"{fold.path} is no fold model of this project ({error.problem})") from error
        if "gamma" in shapes and isinstance(network.harmonise, CombatFeatures):
            head = CombatHead(head, shapes["gamma"][0], feature_width(backbone, network.backbone.pooling))
        return head

    def _adapter(self, fold: TensorFile, module: str, device: torch.device) -> dict[str, Tensor]:
        parts = [part for part in ADAPTER_PARTS if f"{BACKBONE}{module}.{part}" in fold]
        return {part: fold[f"{BACKBONE}{module}.{part}"].to(device, torch.float32) for part in parts}

    def _check(self, fold: TensorFile, stored: set[str], adapted: set[str], head: HeadModule, network: Network) -> None:
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
