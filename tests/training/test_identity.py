"""Which differences count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from midog.data.patches import PatchTable
from midog.errors import WeightsError
from midog.files import write_json
from midog.models.weights import write_tensors
from midog.recipe import load_recipe
from midog.training.checkpoint import FORMAT
from midog.training.identity import differences, fold_identity, stored_identity
from midog.training.source import gather

OLD = {"member": {"training": {"lr": 1e-4, "epochs": 3}, "augment": {"fourier": {"p": 0.5}, "fisheye": None}}}


def changed(path: str, value: Any) -> dict[str, Any]:
    import copy

    new = copy.deepcopy(OLD)
    *way, last = path.split(".")
    place: Any = new
    for key in way:
        place = place[key]
    place[last] = value
    return new


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("member.training.lr", 2e-4, "member.training.lr: 0.0001 made it, 0.0002 is asked for"),
        ("member.augment.fourier", None, "member.augment.fourier: on made it, off is asked for"),
        ("member.augment.fisheye", {"p": 1}, "member.augment.fisheye: off made it, on is asked for"),
        ("member.training.mixup", 0.2, "member.training.mixup: nothing made it, 0.2 is asked for"),
    ],
)
def test_a_difference_names_its_key_and_both_values(path: str, value: Any, line: str) -> None:
    assert differences(OLD, changed(path, value)) == [line]


@pytest.mark.parametrize("value", [None, False, 0, "", "off"])
def test_a_setting_of_a_later_release_that_is_off_is_no_difference(value: Any) -> None:
    assert differences(OLD, changed("member.training.new", value)) == []


def test_what_an_earlier_release_did_without_saying_so_is_no_difference() -> None:
    assert differences(OLD, changed("member.training.optimizer", "adamw")) == []
    assert differences(OLD, changed("member.training.optimizer", "adam")) == [
        "member.training.optimizer: adamw made it, adam is asked for"
    ]


def test_tuples_and_lists_are_one() -> None:
    assert differences({"beta": [0.01, 0.09]}, {"beta": (0.01, 0.09)}) == []


SCANNER_TARGETS = "each.augment={kind: paper, fourier: {targets: scanner}}"
TUMOURS = "each.auxiliary={kind: domain_adversarial, confounder: tumour}"


@pytest.mark.parametrize(
    ("change", "used"),
    [
        ("each.augment=paper", ""),
        (SCANNER_TARGETS, "scanner"),
        ("each.harmonise=combat", "scanner"),
        ("each.auxiliary=scanner_contrast", "scanner"),
        (TUMOURS, "tumour"),
        ("each.auxiliary={kind: domain_adversarial, confounder: laboratory}", "laboratory"),
    ],
)
def test_a_corrected_column_is_a_difference_for_the_members_that_use_it(
    recipe_path: Path, table: PatchTable, change: str, used: str
) -> None:
    recipe = load_recipe(recipe_path, [change])

    def identity(table: PatchTable) -> dict[str, Any]:
        source, member = gather(recipe, table), recipe.members["micro"]
        return fold_identity(member, 0, source.table, source.assignment, source.pixels, None)

    made = identity(table)
    assert bool(made["columns_sha256"]) == bool(used)
    for column in ("scanner", "tumour", "laboratory", "species"):
        corrected = [replace(table.patches[0], **{column: "corrected"}), *table.patches[1:]]
        found = [line.partition(":")[0] for line in differences(made, identity(table.with_patches(corrected)))]
        assert found == (["columns_sha256"] if column == used else [])
    del made["columns_sha256"]  # an earlier release made it
    assert differences(made, identity(table)) == []


@pytest.mark.parametrize("looked_at", ["last.safetensors", "done.json"])
def test_a_fold_that_is_finished_while_it_is_looked_at_is_done(tmp_path: Path, looked_at: str) -> None:
    """Its process writes done.json and removes its checkpoint just after one of the two was looked for."""

    class Watched(type(Path())):  # type: ignore[misc]
        def is_file(self) -> bool:
            found = bool(super().is_file())
            if self.name == looked_at and (tmp_path / "last.safetensors").exists():
                write_json(tmp_path / "done.json", {"identity": {"seed": 7}})
                (tmp_path / "last.safetensors").unlink()
            return found

    about = {"format": FORMAT, "epoch": 1, "seconds": 1.0, "identity": {"seed": 7}}
    write_tensors(tmp_path / "last.safetensors", {"x": torch.zeros(1)}, about)
    assert stored_identity(tmp_path) == {"seed": 7}
    assert stored_identity(Watched(tmp_path)) == {"seed": 7}
    assert not (tmp_path / "last.safetensors").exists()


def test_a_damaged_checkpoint_of_a_fold_that_is_not_done_is_told(tmp_path: Path) -> None:
    assert stored_identity(tmp_path) is None
    (tmp_path / "last.safetensors").write_bytes(b"half")
    with pytest.raises(WeightsError, match="cannot be continued"):
        stored_identity(tmp_path)
