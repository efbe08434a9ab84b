"""Out of memory in the middle of an epoch: less at once, the same effective batch, and it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from midog.data.patches import PatchTable
from midog.errors import MidogError
from midog.models.classifier import Classifier
from midog.recipe import load_recipe
from midog.training.fold import start, train_epoch
from midog.training.machine import Machine, claim
from midog.training.memory import Memory
from midog.training.optimise import changing_tensors
from midog.training.patches import fold_patches
from midog.training.source import gather

RECIPE = """
each:
  pretrained: random
  image: {crop: 64, size: 32}
  augment: light
  training: {epochs: 2, batch: 16, lr: 1e-3, warmup: 0}
members:
  vit: {backbone: test_vit, tune: {kind: lora, rank: 2}}
"""


def limit(classifier: Classifier, largest: int, checkpointed: int) -> None:
    """A device whose memory holds `largest` patches at once, `checkpointed` where activations are computed again.

    There is no GPU in the tests: the network itself refuses, with torch's own error, as a full GPU does.
    """

    def refuse(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        room = checkpointed if getattr(classifier.backbone, "grad_checkpointing", False) else largest
        if module.training and len(inputs[0]) > room:
            raise torch.OutOfMemoryError("the device is full")

    classifier.register_forward_pre_hook(refuse)


def train(table: PatchTable, tmp_path: Path, room: tuple[int, int] | None, **how: Any) -> tuple[Any, Memory, list[str]]:
    """Trained tensors after one epoch, what the memory came to, and what was said."""
    (tmp_path / "vit.yaml").write_text(RECIPE)
    recipe, said = load_recipe(tmp_path / "vit.yaml"), []
    source, member = gather(recipe, table), recipe.members["vit"]
    patches = fold_patches(member, 0, source.table, source.assignment, source.pixels)
    with claim(Machine(threads=1)) as resources:
        classifier, state = start(member, None, resources, 0)
        if room:
            limit(classifier, *room)
        memory = Memory(classifier, say=said.append, **how)
        train_epoch(member, 0, 0, patches, classifier, state, resources, memory)
    return {name: tensor.clone() for name, tensor in changing_tensors(classifier).items()}, memory, said


def test_half_the_part_gives_the_same_weights_and_says_so(table: PatchTable, tmp_path: Path) -> None:
    whole, _, silent = train(table, tmp_path, None)
    parts, memory, said = train(table, tmp_path, (5, 5))
    assert memory.part == 4 and not memory.checkpointing and not silent
    assert said == [
        "out of memory: going on with 8 patches at once; the effective batch stays 16",
        "out of memory: going on with 4 patches at once; the effective batch stays 16",
    ]
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-5)


def test_where_parts_get_small_activations_are_computed_again(table: PatchTable, tmp_path: Path) -> None:
    whole, _, _ = train(table, tmp_path, None)
    parts, memory, said = train(table, tmp_path, (2, 8))
    assert memory.checkpointing and memory.part == 8
    assert said[2].startswith("out of memory: going on with gradient checkpointing")
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-5)


def test_checkpointing_from_the_start_changes_no_bit(table: PatchTable, tmp_path: Path) -> None:
    whole, _, _ = train(table, tmp_path, None)
    again, memory, _ = train(table, tmp_path, None, checkpointing=True)
    assert memory.checkpointing
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_a_device_too_small_for_one_patch_is_an_error_with_a_fix(table: PatchTable, tmp_path: Path) -> None:
    with pytest.raises(MidogError, match="does not fit this device even one patch at a time") as caught:
        train(table, tmp_path, (0, 0))
    assert "tune: lora" in caught.value.fix


@pytest.mark.parametrize(("size", "part", "lengths"), [(8, None, [8]), (8, 3, [2, 3, 3]), (5, 9, [5]), (3, 1, [1] * 3)])
def test_parts_cover_the_batch_once(size: int, part: int | None, lengths: list[int]) -> None:
    memory = Memory(torch.nn.Identity(), part)  # type: ignore[arg-type]
    parts = list(memory.parts(size))
    assert [rows.stop - rows.start for rows in parts] == lengths
    assert [row for rows in parts for row in range(size)[rows]] == list(range(size))
