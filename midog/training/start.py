"""A start: before a member's training, its backbone is tuned on the fold's own training cases.

`reconstruct` hides blocks of a patch and predicts their pixels, without labels; `distil` learns to answer as another
member's model of the same fold does. Every weight moves, so the fold model that follows holds its whole backbone: no
weights that have seen all cases can come of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules.batchnorm import _BatchNorm

from midog.errors import MidogError
from midog.models.classifier import Classifier
from midog.models.heads.concept import PROTOTYPES, Concept
from midog.models.heads.linear import feature_width
from midog.models.predict import autocast
from midog.models.preprocess import input_size
from midog.progress import steps as progress_bar
from midog.status import START, START_LOG
from midog.training import checkpoint
from midog.training.batches import epoch_batches, steps_per_epoch
from midog.training.feed import Fed, feed
from midog.training.folder import cut_log, write_log_line
from midog.training.machine import Machine, Resources
from midog.training.member import Member, Training, network_of
from midog.training.memory import Memory
from midog.training.optimise import build_optimizer
from midog.training.patches import FoldPatches
from midog.training.seeds import generator_of, seed_of
from midog.training.start_settings import Distil
from midog.training.step import set_learning_rate, step

GRID, HIDDEN = 8, 32
"""Blocks along a side of the patch, and how many of all are hidden. Our choice: a block is 2 µm of a 64-pixel crop."""
FOCUS = 0.5
"""Standard deviation, in half sides, of the Gaussian that weighs pixels by their distance from the centre, where the
cell is (our choice)."""
FLAT = 0.1
"""Added to a patch's standard deviation, so that an empty one is not blown up to noise (our choice)."""
SOFTNESS = 2.0
"""Temperature of distillation: a teacher is sure of the patches that it was trained on (our choice)."""


class Reconstruction(nn.Module):
    """Augmented patches (n, 128, 128, 3) uint8 to the mean loss of filling in what is hidden of them."""

    def __init__(self, pupil: Classifier, resources: Resources) -> None:
        super().__init__()
        self.pupil, self.resources = pupil, resources
        pupil.head.requires_grad_(False)
        side = input_size(pupil.network.image, pupil.network.backbone)
        with torch.no_grad():
            found = feature_map(pupil.eval(), torch.zeros(1, 3, side, side, device=resources.device))
        self.factor = max(1, round(side / found.shape[-1]))
        self.decoder = nn.Conv2d(found.shape[1], 3 * self.factor**2, 1)
        self.side = self.factor * found.shape[-1]
        along = torch.linspace(-1, 1, self.side).square()
        self.weight = torch.exp(-(along[:, None] + along[None, :]) / (2 * FOCUS**2)).to(resources.device)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 128, 128, 3) uint8 RGB to a scalar: the weighted mean absolute error on hidden pixels, 0 or more."""
        x = self.pupil.prepare(images)
        # On the processor, so that every device hides the same blocks.
        rank = torch.rand(len(x), GRID * GRID).argsort(dim=1).argsort(dim=1)
        hidden = (rank < HIDDEN).view(-1, 1, GRID, GRID).float().to(x.device)
        mean = x.mean((2, 3), keepdim=True)
        seen = torch.where(F.interpolate(hidden, x.shape[-2:]) > 0, mean, x)
        with autocast(self.resources.device, self.resources.dtype):
            predicted = self.decoder(feature_map(self.pupil, seen))
        predicted = F.pixel_shuffle(predicted.float(), self.factor)
        wanted = (x - mean) / (x.std((2, 3), keepdim=True) + FLAT)
        wanted = F.interpolate(wanted, (self.side, self.side), mode="area")
        weight = F.interpolate(hidden, (self.side, self.side)) * self.weight
        missed = (weight * (predicted - wanted).abs()).sum((1, 2, 3)) / (3 * weight.sum((1, 2, 3)))
        return missed.mean()


def feature_map(classifier: Classifier, x: Tensor) -> Tensor:
    """(n, 3, s, s) to the backbone's last features, (n, width, h, w): patch tokens in their places, or the last map."""
    backbone: Any = classifier.backbone
    features: Tensor = backbone.forward_features(x.contiguous(memory_format=classifier.format))
    if features.ndim == 3:
        tokens = features[:, int(getattr(backbone, "num_prefix_tokens", 0)) :].transpose(1, 2)
        side = math.isqrt(tokens.shape[2])
        return tokens.reshape(*tokens.shape[:2], side, side)
    return features if features.shape[1] == backbone.num_features else features.permute(0, 3, 1, 2)


class Distillation(nn.Module):
    """Augmented patches (n, 128, 128, 3) uint8 to the mean loss of answering otherwise than the teacher."""

    def __init__(self, pupil: Classifier, teacher: Classifier, features: float, resources: Resources) -> None:
        super().__init__()
        self.pupil, self.features, self.resources = pupil, features, resources
        self.teacher = (teacher,)  # in a tuple, it is no part of what is trained and kept
        own, given = (feature_width(c.backbone, c.network.backbone.pooling) for c in (pupil, teacher))
        self.projection = nn.Linear(own, given) if features else None

    def forward(self, images: Tensor) -> Tensor:
        """(n, 128, 128, 3) uint8 RGB to a scalar: the divergence from the teacher's answers, 0 where both agree."""
        with torch.no_grad():
            known, answer = self._look(self.teacher[0], images)
        features, logits = self._look(self.pupil, images)
        sure = torch.sigmoid(answer / SOFTNESS)
        ours, least = (F.binary_cross_entropy_with_logits(z / SOFTNESS, sure) for z in (logits, answer))
        # A divergence, 0 where both agree; its gradients stay of the size that they have without the temperature.
        loss = (ours - least) * SOFTNESS**2
        if self.projection is None:
            return loss
        return loss + self.features * (1 - F.cosine_similarity(self.projection(features), known)).mean()

    def _look(self, classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (n, width) and logits (n,), float32."""
        x = classifier.prepare(images).contiguous(memory_format=classifier.format)
        with autocast(self.resources.device, self.resources.dtype):
            features, given = classifier.features_and_look(x)
            return features.float(), classifier.head(given).float()


def tune_backbone(
    backbone: nn.Module,
    member: Member,
    k: int,
    patches: FoldPatches,
    resources: Resources,
    machine: Machine,
    teacher: Callable[[], Classifier],
    folder: Path,
    identity: dict[str, Any],
    say: Callable[[str], None] = lambda line: None,
    steps: int | None = None,
) -> dict[str, Tensor] | None:
    """Carry out `member.start` on a pretrained backbone, in place; the head that was distilled with it, or None.

    After each epoch, and once it is over, `folder` holds start.safetensors: killed at any moment, the same call goes on
    after the last whole epoch, and does nothing but read where all are done. start.jsonl keeps the losses.

    Args:
        teacher: makes the model to distil from, when there is one.
        identity: what made the fold.
        steps: take so many steps of each epoch alone.

    Raises: MidogError when the loss is no longer finite; WeightsError when start.safetensors is damaged.
    """
    settings, file, what = member.start, folder / START, f"{member.name} fold {k}"
    assert settings is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(member.seed, member.name, k, "objective"))
        pupil = Classifier(network_of(member), backbone).to(resources.device)
        objective: Reconstruction | Distillation
        if isinstance(settings, Distil):
            objective = Distillation(pupil, teacher(), settings.features, resources)
        else:
            objective = Reconstruction(pupil, resources)
        objective.to(resources.device)
        memory = Memory(pupil, machine.part, machine.checkpointing, lambda line: say(f"{what}, start: {line}"))
        length: dict[str, Any] = {"epochs": settings.epochs, "warmup": settings.epochs / 10, "patience": 0}
        schedule = replace(member.training, lr=settings.lr, schedule="cosine", select="last", **length)
        optimizer = build_optimizer(objective, schedule.optimizer, schedule.lr, schedule.weight_decay)
        scaler = GradScaler(resources.device.type, enabled=resources.dtype is torch.float16)
        state, epoch, seconds = checkpoint.State(objective, optimizer, None, scaler), 0, 0.0
        if file.is_file():
            header = checkpoint.read_header(file)
            checkpoint.restore(file, state)
            epoch, seconds = header.epoch, header.seconds
        cut_log(folder, epoch, START_LOG)
        with progress_bar(f"{what}, start", settings.epochs) as advance:
            for _ in range(epoch):
                advance("")
            while epoch < settings.epochs:
                line = _epoch(member, k, epoch, patches, objective, state, schedule, resources, memory, steps)
                epoch, seconds = epoch + 1, seconds + line["seconds"]
                if epoch == settings.epochs:
                    optimizer.state.clear()  # what is over needs no moments
                write_log_line(folder, {"epoch": epoch, **line}, START_LOG)
                checkpoint.save(file, state, checkpoint.Header(epoch, seconds, identity))
                advance(f"loss {line['loss']:.4f}")
        if memory.checkpointing:
            backbone.set_grad_checkpointing(False)  # type: ignore[operator]  # its training decides for itself
        pupil.to("cpu")
    # A head without its prototypes, which are made next, has learned nothing that they could be put into.
    keep = isinstance(settings, Distil) and not (isinstance(member.head, Concept) and member.head.anchors == PROTOTYPES)
    return pupil.head.state_dict() if keep else None


def _epoch(
    member: Member,
    k: int,
    epoch: int,
    patches: FoldPatches,
    objective: Reconstruction | Distillation,
    state: checkpoint.State,
    schedule: Training,
    resources: Resources,
    memory: Memory,
    steps: int | None,
) -> dict[str, Any]:
    """One epoch, or its first `steps` steps: every patch once, whatever its label."""
    began, n = time.perf_counter(), len(patches.labels)
    per_epoch = steps_per_epoch(n, schedule.batch)

    def batches(at: int) -> Iterator[Fed]:
        key = (member.seed, f"{member.name} start", k, at)
        torch.manual_seed(seed_of(*key, "torch"))
        order = generator_of(*key, "order").permutation(n)[: (steps or per_epoch) * schedule.batch]
        return feed(epoch_batches(patches.samples, order, schedule.batch, key, resources.workers), resources.device)

    objective.train()
    total, lr, taken = torch.zeros((), device=resources.device), 0.0, 0
    for batch in batches(epoch):
        lr = set_learning_rate(state, schedule, epoch * per_epoch + taken, per_epoch)
        mean = step(schedule, batch, objective.pupil, state, resources, memory, lambda part: objective(part.images))
        total, taken = total + mean, taken + 1
    if not math.isfinite(loss := float(total) / taken):
        raise MidogError(
            f"{member.name}, fold {k}: the loss of its start is no longer a finite number in epoch {epoch + 1}",
            f"try a lower learning rate: --set members.{member.name}.start.lr={schedule.lr / 4:g}",
        )
    if epoch + 1 == schedule.epochs and isinstance(objective, Reconstruction):
        _see_whole_patches(objective.pupil, batches(epoch + 1))
    return {"loss": loss, "lr": lr, "seconds": time.perf_counter() - began, "steps": taken}


@torch.no_grad()
def _see_whole_patches(pupil: Classifier, batches: Iterator[Fed]) -> None:
    """Batch norms have seen patches with holes: take their statistics anew, as the mean over an epoch."""
    norms = {module: module.momentum for module in pupil.backbone.modules() if isinstance(module, _BatchNorm)}
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for batch in batches:
        feature_map(pupil, pupil.prepare(batch.images))
    for norm, momentum in norms.items():
        norm.momentum = momentum
