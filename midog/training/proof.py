"""A member proved for real before hours are spent: a few steps, OOF, save, reload, the same logits; and its cost."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from augment.fourier import colour_shift
from augment.policies import Policy
from augment.views import VIEW_NAMES
from midog.data.folds import Assignment
from midog.data.patches import PatchTable
from midog.errors import WeightsError
from midog.models.classifier import Begin, Classifier, backbone_state, build_classifier, round_trained, save_fold
from midog.models.inference import Inference
from midog.models.network import Network
from midog.models.predict import predict_logits
from midog.status import START_LOG, read_log
from midog.training.batches import Images, steps_per_epoch
from midog.training.fold import start, train_epoch
from midog.training.identity import fold_identity
from midog.training.machine import Machine, Resources, claim, forget_peak, peak_memory
from midog.training.member import Member, network_of
from midog.training.memory import Memory
from midog.training.optimise import trained_parameters
from midog.training.patches import FoldPatches, Rows, fold_patches
from midog.training.prototypes import prototypes_of
from midog.training.start import tune_backbone

STEPS = 2
"""Steps that are timed, after one that pays for the warm-up."""
SCORED = 16
PROTOTYPED = 64
"""Patches of each class that prototypes are made of here."""
TOLERANCE = 1e-3
"""Largest difference of a logit between trained adapters and merged weights in float32."""


@dataclass(frozen=True)
class Proof:
    """What a few steps of a member showed, and what follows from them for all of its training on this device.

    Attributes:
        seconds_per_step: of the timed steps; `seconds_per_fold` is the start, all epochs and the scoring of the
            left-out patches in every view.
        seconds_of_start: all epochs of the start, which `start` names; 0 and empty where it is off.
        seconds_per_view: of one patch in one view.
        memory: bytes at most while training: of tensors on a GPU, of the whole process on a processor.
        file_bytes: of a fold model.
        colour_shift: how far Fourier Domain Adaptation moves the mean of each channel, in grey levels, on average over
            patches and targets; empty where it is off or keeps the mean (`include_dc: false`).
    """

    member: str
    backbone: str
    network: Network
    trained: int
    parameters: int
    loss: float
    seconds_per_step: float
    seconds_per_epoch: float
    seconds_per_fold: float
    seconds_per_view: float
    memory: int
    file_bytes: int
    largest_difference: float
    seconds_of_start: float = 0.0
    start: str = ""
    colour_shift: tuple[float, ...] = ()
    split: tuple[str, ...] = ()

    def text(self) -> str:
        """What was proved, for a person: one line, and one more for each time that the batch had to be split."""
        share = f"{self.trained:,} of {self.parameters:,} parameters trained"
        pace = f"{self.seconds_per_step:.2f} s a step, about {self.seconds_per_epoch:.0f} s an epoch"
        lines = [
            f"{self.member} ({self.backbone}): {share}; loss {self.loss:.4f}; {pace}; fold model "
            f"{self.file_bytes / 1e6:.1f} MB; reloaded logits differ by at most {self.largest_difference:.1e}"
            + (f"; FDA moves the mean colour by {_levels(self.colour_shift)} grey levels" if self.colour_shift else "")
        ]
        return "\n".join([*lines, *(f"  {line}" for line in self.split)])


def prove(
    member: Member,
    table: PatchTable,
    assignment: Assignment,
    images: Images,
    pretrained: Path | None,
    machine: Machine,
    teacher: Member | None = None,
) -> Proof:
    """Train `member` for a few steps without the first fold, then score, save, reload and score again. A start is
    carried out for a few steps too; where it has a `teacher`, that answers untrained.

    Raises: WeightsError when the reloaded model gives other logits; whatever training itself would raise.
    """
    fold_identity(member, 0, table, assignment, images, pretrained)
    patches = fold_patches(member, 0, table, assignment, images)
    started, said = member.start, list[str]()
    with claim(machine) as resources, tempfile.TemporaryDirectory(prefix="midog-") as scratch:
        forget_peak(resources.device)
        begin = _few_steps(member, patches, resources, machine, pretrained, teacher, Path(scratch), said)
        few_patches = prototypes_of(member, 0, patches, resources, PROTOTYPED)
        classifier, state = start(member, pretrained, resources, 0, begin, patches.pairing, few_patches)
        memory = Memory(classifier, machine.part, machine.checkpointing, said.append)
        train_epoch(member, 0, 0, patches, classifier, state, resources, memory, steps=1)
        began = time.perf_counter()
        line = train_epoch(member, 0, 0, patches, classifier, state, resources, memory, steps=STEPS)
        per_step = (time.perf_counter() - began) / line["steps"]
        needed = peak_memory(resources.device)
        few = Rows(images, patches.left_out.rows[:SCORED])
        predict_logits(classifier, few, VIEW_NAMES[:1], resources.device)
        began = time.perf_counter()
        predict_logits(classifier, few, VIEW_NAMES, resources.device)
        per_view = (time.perf_counter() - began) / (len(few) * len(VIEW_NAMES))
        round_trained(classifier)
        before = predict_logits(classifier, few, VIEW_NAMES, resources.device, precision="float32")
        file = save_fold(classifier, Path(scratch) / "model.safetensors")
        base = None if classifier.whole else backbone_state(classifier)
        reloaded = Inference(classifier.network, base, resources.device).switch(file)
        after = predict_logits(reloaded, few, VIEW_NAMES, resources.device, precision="float32")
        size, start_log = file.stat().st_size, read_log(Path(scratch), START_LOG)
    difference = float(np.abs(before - after).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(before).max())):
        raise WeightsError(f"{member.name}: the saved model gives other logits when reloaded (by {difference:.2g})")
    steps = steps_per_epoch(len(patches.labels), member.training.batch)
    per_epoch = per_step * steps
    before_it = sum(line["seconds"] / line["steps"] for line in start_log) * steps * (started.epochs if started else 0)
    scoring = per_view * len(VIEW_NAMES) * len(patches.left_out)
    return Proof(
        member=member.name,
        backbone=classifier.network.backbone.name,
        network=classifier.network,
        trained=sum(parameter.numel() for parameter in trained_parameters(classifier).values()),
        parameters=sum(parameter.numel() for parameter in classifier.parameters()),
        loss=line["loss"],
        seconds_per_step=per_step,
        seconds_per_epoch=per_epoch,
        seconds_per_fold=before_it + per_epoch * member.training.epochs + scoring,
        seconds_per_view=per_view,
        memory=needed,
        file_bytes=size,
        largest_difference=difference,
        seconds_of_start=before_it,
        start=f"{started.kind}, epochs: {started.epochs}" if started else "",
        colour_shift=_colour_shift(member, patches),
        split=tuple(said),
    )


def _few_steps(
    member: Member,
    patches: FoldPatches,
    resources: Resources,
    machine: Machine,
    pretrained: Path | None,
    teacher: Member | None,
    folder: Path,
    said: list[str],
) -> Begin | None:
    """The member's start, cut down to one epoch of a few steps."""
    if member.start is None:
        return None
    few = replace(member, start=replace(member.start, epochs=1))

    def untrained() -> Classifier:
        assert teacher is not None
        return build_classifier(network_of(teacher), pretrained).requires_grad_(False).eval().to(resources.device)

    return partial(
        tune_backbone,
        member=few,
        k=0,
        patches=patches,
        resources=resources,
        machine=machine,
        teacher=untrained,
        folder=folder,
        identity={},
        say=said.append,
        steps=STEPS,
    )


def _colour_shift(member: Member, patches: FoldPatches) -> tuple[float, ...]:
    """Of the first training patches; where targets are other scanners' patches, those of the first one's scanner."""
    fourier, policy = member.augment.fourier, patches.samples.augmentations[0]
    if fourier is None or not fourier.include_dc or not isinstance(policy, Policy) or not policy.targets:
        return ()
    few = patches.samples.images[patches.samples.rows[:SCORED]]
    return tuple(float(levels) for levels in colour_shift(few, policy.targets))


def _levels(shift: tuple[float, ...]) -> str:
    return ", ".join(f"{levels:.0f}" for levels in shift)
