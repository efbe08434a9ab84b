"""How fast a member trains: an epoch against a plain loop on the same patches, in the same run.

The plain loop is what a first script does, and what the published benchmark of AMi-Br does: float32, batches of 8, each
file decoded, cropped and resized with Pillow whenever it is drawn, in the foreground, convolutions in torch's default
memory format.

Utilisation is the floating-point work of the steps (`models.cost.step_flops`: what LoRA leaves out is not counted,
what checkpointing computes twice is counted once) over the rate of a large matrix product in the same precision.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from midog.data.folds import make_folds
from midog.data.patches import PatchTable
from midog.data.readers import read_layout
from midog.data.synthetic import draw
from midog.models.classifier import build_classifier
from midog.models.cost import matrix_rate, step_flops
from midog.models.preprocess import input_size
from midog.recipe import load_recipe
from midog.training.batches import Augmentation
from midog.training.fold import start, train_epoch
from midog.training.machine import Machine, Resources, claim, forget_peak, peak_memory
from midog.training.member import Member, network_of
from midog.training.memory import Memory
from midog.training.patches import FoldPatches, fold_patches
from midog.training.source import gather

PATCHES = 320
WARM = 2
"""Steps before the clock starts: they pay for torch's warm-up in either loop."""
PLAIN_BATCH = 8
PLAIN_STEPS = 40
"""Most steps of the plain loop: its rate does not change with more."""
LIMITS = {"cpu": {"waiting for batches": 10.0}, "cuda": {"waiting for batches": 5.0, "utilisation": 45.0}}
"""Per cent: the most waiting, the least utilisation."""
TIMES_FASTER = 8.0
"""What a foundation model with LoRA should gain on a GPU over the plain loop."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch took: seconds, the share of them spent waiting for batches, patches at once, megabytes at most."""

    seconds: float
    waiting: float
    at_once: int
    checkpointing: bool
    peak: float


def measure(
    backbone: str | None = None,
    patches: int = PATCHES,
    recipe: str | None = None,
    member: str | None = None,
    machine: Machine | None = None,
) -> list[dict[str, Any]]:
    """Rows for `midog bench train`.

    Args:
        backbone: a registry name: LoRA as in the recipe `paper`, random weights. None measures `cpu-small`.
        patches: patches in the epoch: real ones from `MIDOG_DATA`, else drawn ones.
        recipe: measure its member (the first one unless named) instead, started from random weights.
        machine: device, precision, checkpointing, compile.

    Returns: rows name, unit, ours, plain, ratio, limit.
    """
    loaded = load_recipe(recipe or ("paper" if backbone else "cpu-small"), ["each.pretrained=random"])
    chosen = loaded.members[member or next(iter(loaded.members))]
    if backbone is not None:
        chosen = replace(chosen, name=backbone, backbone=backbone)
    with _table(patches) as table, claim(machine or Machine()) as resources:
        source = gather(replace(loaded, folds="fold"), table)
        fold = fold_patches(chosen, 0, source.table, source.assignment, source.pixels)
        before = matrix_rate(resources.device, resources.dtype)
        ours = _epoch(chosen, fold, resources, machine or Machine())
        plain = _plain_rate(chosen, fold, source.table, resources)
        rate = max(before, matrix_rate(resources.device, resources.dtype))  # other load only ever slows it
    return _rows(chosen, len(fold.labels), ours, plain, rate, resources)


def _rows(
    member: Member, patches: int, ours: Epoch, plain: float, rate: float, resources: Resources
) -> list[dict[str, Any]]:
    images = patches // member.training.batch * member.training.batch
    flops, speed = step_flops(network_of(member)), images / ours.seconds
    limits = LIMITS.get(resources.device.type, {})
    about = f"{member.name}, batch {member.training.batch}, {ours.at_once} at once, {_precision(resources)}"
    about += ", checkpointing" if ours.checkpointing else ""

    def row(name: str, unit: str, value: float, **more: float | None) -> dict[str, Any]:
        rest = {key: more.get(key) for key in ("plain", "ratio")}
        limit = more.get("limit", limits.get(name))
        return {"name": name, "unit": unit, "ours": value, **rest, "limit": limit}

    enough = TIMES_FASTER if resources.device.type == "cuda" else None
    return [
        {"name": about, "unit": resources.device_name, "ours": None, "plain": None, "ratio": None, "limit": None},
        row("training speed", "patches/s", speed, plain=plain, ratio=speed / plain, limit=enough),
        row("an epoch of 12,000 patches", "s", 12_000 / speed, plain=12_000 / plain, ratio=speed / plain),
        row("waiting for batches", "%", 100 * ours.waiting),
        row("peak memory", "MB", ours.peak),
        row("work per patch and step", "GFLOP", flops / 1e9),
        row("matrix rate here", "TFLOP/s", rate / 1e12),
        row("utilisation", "%", 100 * flops * speed / rate),
    ]


def _precision(resources: Resources) -> str:
    return str(resources.dtype).removeprefix("torch.")


def _epoch(member: Member, fold: FoldPatches, resources: Resources, machine: Machine) -> Epoch:
    classifier, state = start(member, None, resources, 0, pairing=fold.pairing)
    memory = Memory(classifier, machine.part, machine.checkpointing)
    if machine.compile:
        classifier.compile()  # type: ignore[no-untyped-call]
    train_epoch(member, 0, 0, fold, classifier, state, resources, memory, steps=WARM)
    forget_peak(resources.device)
    line = train_epoch(member, 0, 1, fold, classifier, state, resources, memory)
    at_once = min(memory.part or member.training.batch, member.training.batch)
    return Epoch(line["seconds"], line["waiting"], at_once, memory.checkpointing, peak_memory(resources.device) / 1e6)


def _plain_rate(member: Member, fold: FoldPatches, table: PatchTable, resources: Resources) -> float:
    """Patches a second in the plain loop."""
    network, device = network_of(member), resources.device
    classifier = build_classifier(network).to(device)
    classifier.format = torch.contiguous_format
    classifier.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW([p for p in classifier.parameters() if p.requires_grad], lr=member.training.lr)
    criterion = nn.BCEWithLogitsLoss()
    files = [table.file(table.patches[row]) for row in fold.samples.rows]
    rng = np.random.default_rng(0)
    side = input_size(network.image, network.backbone)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.backbone.mean, network.backbone.std))
    order = rng.permutation(len(files))
    steps = min(PLAIN_STEPS, max(1, len(files) // PLAIN_BATCH))
    began = 0.0
    for step in range(-WARM, steps):
        if step == 0:
            began = time.perf_counter()
        rows = order[max(step, 0) * PLAIN_BATCH :][:PLAIN_BATCH]
        images = [_item(files[row], fold.samples.augmentations[row], member.image.crop, side, rng) for row in rows]
        x = torch.stack([(image - mean) / std for image in images]).to(device)
        targets = torch.from_numpy(fold.labels[rows].astype(np.float32)).to(device)
        loss = criterion(classifier(x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # a first script prints it
    return steps * min(PLAIN_BATCH, len(files)) / (time.perf_counter() - began)


def _item(file: Path, augmentation: Augmentation, crop: int, side: int, rng: np.random.Generator) -> torch.Tensor:
    image = augmentation(np.asarray(Image.open(file).convert("RGB")), rng)
    margin = (image.shape[0] - crop) // 2
    centre = Image.fromarray(image[margin : margin + crop, margin : margin + crop])
    resized = np.array(centre.resize((side, side), Image.Resampling.BICUBIC))
    return torch.from_numpy(resized).permute(2, 0, 1).float() / 255


@contextmanager
def _table(patches: int) -> Iterator[PatchTable]:
    """About `patches` training patches in the first of two folds' training side."""
    data = os.environ.get("MIDOG_DATA")
    with tempfile.TemporaryDirectory(prefix="midog-") as scratch:
        real = data is not None and (Path(data) / "amibr").is_dir()
        layout = Path(data or "") / "amibr" if real else draw(scratch, cases=-(-patches // 10), per_case=20)
        table = make_folds(read_layout([layout]), "grouped:2:0")
        inside = np.flatnonzero(table.folds == 1)[:patches]
        outside = np.flatnonzero(table.folds == 0)[:40]
        yield table.subset(np.concatenate([inside, outside]))
