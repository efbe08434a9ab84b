"""How fast a member trains: one epoch against a plain loop on the same patches, in the same run.

The plain loop is what a first script does: decode each file with Pillow whenever it is drawn, crop and resize it there,
batches of 8, convolutions in torch's default memory format, augmentation in the foreground.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from midog.models.preprocess import input_size
from midog.training.batches import Augmentation
from midog.training.fold import start, train_epoch
from midog.training.launch import gather
from midog.training.machine import Machine, Resources, claim
from midog.training.member import Member, network_of
from midog.training.patches import FoldPatches, fold_patches

PATCHES = 320
PLAIN_BATCH = 8
LIMIT = 0.10
"""Largest share of an epoch that may pass outside forward, backward and optimizer."""


def measure(patches: int = PATCHES, recipe: str = "cpu-small", member: str | None = None) -> list[dict[str, Any]]:
    """Rows for `midog bench train`: seconds of one epoch, its waiting share, and the ratio to the plain loop.

    Args:
        patches: patches in the epoch: real ones from `MIDOG_DATA`, else drawn ones.
        recipe: its member (the first one unless named) is measured, started from random weights.
    """
    from midog.recipe import load_recipe

    with _table(patches) as table:
        loaded = load_recipe(recipe, ["each.pretrained=random"])
        chosen = loaded.members[member or next(iter(loaded.members))]
        # One epoch of its own: the schedule's length does not matter to the clock.
        source = gather(replace(loaded, folds="fold"), table)
        fold = fold_patches(chosen, 0, source.table, source.assignment, source.pixels)
        with claim(Machine(device="cpu")) as resources:
            ours = _epoch(chosen, fold, resources)
            plain = _plain_epoch(chosen, fold, source.table, resources)
    images = len(fold.labels) // chosen.training.batch * chosen.training.batch
    ratio = plain * images / (len(fold.labels) // PLAIN_BATCH * PLAIN_BATCH) / ours["seconds"]
    return [
        {
            "what": f"{chosen.name}: one epoch of {images} patches",
            "seconds": round(ours["seconds"], 2),
            "patches per second": round(images / ours["seconds"], 1),
            "outside forward, backward, optimizer": f"{ours['waiting']:.1%}",
            "limit": f"{LIMIT:.0%}",
            "plain loop, seconds": round(plain, 2),
            "times faster": round(ratio, 2),
            "threads": resources.threads,
        }
    ]


def _epoch(member: Member, fold: FoldPatches, resources: Resources) -> dict[str, Any]:
    classifier, state = start(member, None, resources, 0)
    # The first steps pay for torch's warm-up in either loop.
    train_epoch(member, 0, 0, fold, classifier, state, resources, steps=2)
    return train_epoch(member, 0, 1, fold, classifier, state, resources)


def _plain_epoch(member: Member, fold: FoldPatches, table: PatchTable, resources: Resources) -> float:
    """Seconds of one epoch of the plain loop."""
    network = network_of(member)
    classifier = build_classifier(network).to(resources.device)
    classifier.format = torch.contiguous_format
    classifier.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW([p for p in classifier.parameters() if p.requires_grad], lr=member.training.lr)
    criterion = nn.BCEWithLogitsLoss()
    files = [table.file(table.patches[row]) for row in fold.samples.rows]
    rng = np.random.default_rng(0)
    side = input_size(network.image, network.backbone)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.backbone.mean, network.backbone.std))
    order = rng.permutation(len(files))
    began = 0.0
    for step in range(-2, len(files) // PLAIN_BATCH):
        if step == 0:
            began = time.perf_counter()
        rows = order[max(step, 0) * PLAIN_BATCH :][:PLAIN_BATCH]
        images = [_item(files[row], fold.samples.augmentations[row], member.image.crop, side, rng) for row in rows]
        x = torch.stack([(image - mean) / std for image in images])
        loss = criterion(classifier(x), torch.from_numpy(fold.labels[rows].astype(np.float32)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - began


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
