"""A recipe before it is carried out: resolved, each member proved for real, and what all of it will cost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from augment.views import VIEW_SETS
from midog.data.patches import PatchTable
from midog.models.cost import bundle_bytes
from midog.status import readable_seconds
from midog.training.launch import choose
from midog.training.machine import Machine, claim
from midog.training.proof import Proof, prove
from midog.training.source import Recipe, gather
from midog.training.teacher import teacher_of
from midog.yaml import yaml_text

PAGES = 16
READING = 1e9
"""Bytes of weights a second that a job reads: our choice, a modest disk."""


@dataclass(frozen=True)
class DryRun:
    """The resolved recipe, how it differs from the shipped one, what each member proved, and what follows.

    `device` is the one at hand, `views` how many of each patch the blend averages, `start_up` seconds that importing
    torch and timm took in a fresh process.
    """

    recipe: dict[str, Any]
    difference: tuple[str, ...]
    proofs: tuple[Proof, ...]
    folds: tuple[str, ...]
    device: str
    views: int
    start_up: float

    @property
    def seconds(self) -> float:
        """Of all members and folds, one after the other on this device."""
        return sum(proof.seconds_per_fold for proof in self.proofs) * len(self.folds)

    @property
    def bundle_bytes(self) -> int:
        """Of the weights in the bundle, before compression."""
        shared = [proof.network for proof in self.proofs if not proof.start]
        return bundle_bytes(shared, len(self.folds), [proof.network for proof in self.proofs if proof.start])

    @property
    def stack_seconds(self) -> float:
        """From nothing to the answer for a stack of 16: start-up, reading, every fold model and view."""
        forward = sum(proof.seconds_per_view for proof in self.proofs) * PAGES * self.views * len(self.folds)
        return self.start_up + self.bundle_bytes / READING + forward

    def text(self) -> str:
        """The recipe, what differs, what was proved and what it will cost, for a person."""
        lines = [yaml_text(self.recipe), "difference from the shipped recipe:"]
        lines += [f"  {line}" for line in self.difference] or ["  none"]
        lines += ["", f"folds: {len(self.folds)} ({', '.join(self.folds)})", ""]
        lines += [proof.text() for proof in self.proofs]
        lines += ["", f"what it will cost on this device ({self.device}):"]
        for proof in self.proofs:
            needs, takes = f"{proof.memory / 1e9:.1f} GB while training", readable_seconds(proof.seconds_per_fold)
            starts = f", of it {readable_seconds(proof.seconds_of_start)} its start ({proof.start})"
            lines.append(f"  {proof.member}: {needs}, {takes} a fold{starts if proof.start else ''}")
        lines += [
            f"  all members and folds, one after the other: {readable_seconds(self.seconds)}",
            f"  the bundle: {self.bundle_bytes / 1e6:,.1f} MB of weights before compression",
            f"  a stack of {PAGES}: about {self.stack_seconds:.0f} s from a fresh start, {self.views} views each",
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The costs as plain JSON: bytes and seconds."""
        members = {
            proof.member: {
                "memory": proof.memory,
                "seconds_per_epoch": proof.seconds_per_epoch,
                "seconds_per_fold": proof.seconds_per_fold,
                "fold_model_bytes": proof.file_bytes,
            }
            for proof in self.proofs
        }
        whole = {"seconds": self.seconds, "bundle_bytes": self.bundle_bytes, "stack_seconds": self.stack_seconds}
        return {"device": self.device, "folds": len(self.folds), "members": members, **whole, "recipe": self.recipe}


def dry_run(
    recipe: Recipe,
    table: PatchTable,
    pretrained: Path | str | None = None,
    machine: Machine | None = None,
    members: Sequence[str] | None = None,
) -> DryRun:
    """Resolve the recipe and prove each member for real: a few steps, OOF logits, save, reload, the same logits.

    Nothing is kept. Raises: what training would raise, before hours are spent.
    """
    pretrained = Path(pretrained) if pretrained is not None else None
    machine, source = machine or Machine(), gather(recipe, table)
    proofs = tuple(
        prove(
            recipe.members[name],
            source.table,
            source.assignment,
            source.pixels,
            pretrained,
            machine,
            recipe.members.get(teacher_of(recipe.members[name])),
        )
        for name in choose("member", members, tuple(recipe.members))
    )
    with claim(machine) as resources:
        device = resources.device_name
    views = len(VIEW_SETS[_views(recipe.plain)])
    names = source.assignment.names
    return DryRun(recipe.plain, tuple(recipe.difference), proofs, names, device, views, _start_up())


def _views(recipe: Mapping[str, Any]) -> str:
    return str(recipe.get("blend", {}).get("views", "none"))


@cache
def _start_up() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, timm"], check=True)
    return time.perf_counter() - began
