"""What only a GPU can show. Without one these are skipped; the loop itself is tested on the processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from midog.data.patches import PatchTable
from midog.models.predict import predict_logits
from midog.recipe import load_recipe
from midog.training.fold import start, train_epoch
from midog.training.machine import Machine, claim
from midog.training.memory import Memory
from midog.training.patches import Rows, fold_patches
from midog.training.source import gather

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

RECIPE = """
each:
  pretrained: random
  image: {crop: 64, size: 64}
  augment: light
  training: {epochs: 2, batch: 16, lr: 1e-3, warmup: 0}
members:
  vit: {backbone: vit_tiny_patch16_224, tune: {kind: lora, rank: 2}}
"""


@pytest.mark.parametrize(
    "sets",
    [
        [],
        ["each.auxiliary=domain_adversarial"],
        ["each.auxiliary=scanner_contrast", "each.harmonise=reinhard"],
        ["each.harmonise=macenko"],
        ["each.auxiliary=adversarial", "each.harmonise=low_pass"],
    ],
)
def test_nothing_in_a_step_waits_for_the_device(sets: list[str], table: PatchTable, tmp_path: Path) -> None:
    (tmp_path / "vit.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "vit.yaml", sets)
    source, member = gather(recipe, table), recipe.members["vit"]
    patches = fold_patches(member, 0, source.table, source.assignment, source.pixels)
    with claim(Machine()) as resources:
        classifier, state = start(member, None, resources, 0, pairing=patches.pairing)
        train_epoch(member, 0, 0, patches, classifier, state, resources, steps=1)
        torch.cuda.set_sync_debug_mode("error")
        try:
            # The one wait, for the mean loss, comes after the last step.
            with pytest.raises(RuntimeError, match="synchroniz") as caught:
                train_epoch(member, 0, 1, patches, classifier, state, resources)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert any("mean_loss" in str(entry.statement) for entry in caught.traceback)


def test_a_gpu_that_is_full_gets_smaller_parts(table: PatchTable, tmp_path: Path) -> None:
    (tmp_path / "vit.yaml").write_text(RECIPE.replace("size: 64", "size: 448"))
    recipe, said = load_recipe(tmp_path / "vit.yaml"), []
    source, member = gather(recipe, table), recipe.members["vit"]
    patches = fold_patches(member, 0, source.table, source.assignment, source.pixels)
    room = 600e6 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(room)
    try:
        with claim(Machine(precision="float32")) as resources:
            classifier, state = start(member, None, resources, 0)
            line = train_epoch(member, 0, 0, patches, classifier, state, resources, Memory(classifier, say=said.append))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert said and "the effective batch stays 16" in said[0]
    assert np.isfinite(line["loss"]) and line["steps"] == len(patches.labels) // 16


def test_gpu_and_processor_agree(table: PatchTable, tmp_path: Path) -> None:
    (tmp_path / "vit.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "vit.yaml")
    source, member = gather(recipe, table), recipe.members["vit"]
    patches = fold_patches(member, 0, source.table, source.assignment, source.pixels)
    with claim(Machine()) as resources:
        classifier, state = start(member, None, resources, 0)
        train_epoch(member, 0, 0, patches, classifier, state, resources)
    few = Rows(source.pixels, patches.left_out.rows[:8])
    here = predict_logits(classifier, few, device="cuda", precision="float32")
    there = predict_logits(classifier, few, device="cpu")
    half = predict_logits(classifier, few, device="cuda")
    np.testing.assert_allclose(here, there, atol=1e-3)
    np.testing.assert_allclose(half, there, atol=0.1)
