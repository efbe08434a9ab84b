"""Many members and folds: what is refused, what may change, what survives a failure."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from midog.cli import run as midog
from midog.data.checks import check
from midog.data.patches import PatchTable
from midog.errors import DataError, LeakError, UsageError, WeightsError
from midog.recipe import Recipe, load_recipe, resolved
from midog.run import open_run
from midog.status import CHECKPOINTS
from midog.training.folder import hold
from midog.training.launch import find_place, preview_augmentation, train_recipe
from midog.training.machine import Machine
from midog.training.source import gather

QUICK = ("each.training.epochs=1", "each.training.warmup=0")


@pytest.fixture
def quick(recipe_path: Path) -> Recipe:
    return load_recipe(recipe_path, QUICK)


def add_member(path: Path, text: str) -> Recipe:
    path.write_text(path.read_text() + text)
    return load_recipe(path, QUICK)


def test_a_changed_setting_is_refused_with_its_key_and_nothing_is_touched(
    tmp_path: Path, quick: Recipe, recipe_path: Path, table: PatchTable
) -> None:
    run = train_recipe(quick, table, tmp_path / "run", folds=[0], threads=1)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    changed = load_recipe(recipe_path, [*QUICK, "each.training.lr=5e-5", "each.augment.dihedral=off"])
    with pytest.raises(UsageError) as caught:
        train_recipe(changed, table, tmp_path / "run", threads=1)
    assert "micro: member.training.lr: 0.001 made it, 5e-05 is asked for" in caught.value.details
    assert any(line.startswith("micro: member.augment.dihedral") for line in caught.value.details)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("change", ["label", "folds", "pixels"])
def test_changed_data_are_refused(
    tmp_path: Path, quick: Recipe, table: PatchTable, change: str, recipe_path: Path
) -> None:
    train_recipe(quick, table, tmp_path / "run", folds=[0], threads=1)
    first, second = table.patches[0], table.patches[1]
    if change == "label":
        assert first.label is not None
        rows = (replace(first, label=1 - first.label), *table.patches[1:])
        key = "data_sha256"
    elif change == "folds":
        rows = tuple(replace(patch, fold=1 - (patch.fold or 0)) for patch in table)
        key = "folds_sha256"
    else:
        rows = (replace(first, path=second.path), replace(second, path=first.path), *table.patches[2:])
        key = "pixels_sha256"
    with pytest.raises(UsageError) as caught:
        train_recipe(quick, table.with_patches(rows), tmp_path / "run", threads=1)
    assert [line.split(": ")[1] for line in caught.value.details] == [key]


def test_a_corrected_column_that_training_used_is_refused(tmp_path: Path, recipe_path: Path, table: PatchTable) -> None:
    recipe = load_recipe(recipe_path, [*QUICK, "each.auxiliary={kind: domain_adversarial, confounder: tumour}"])
    train_recipe(recipe, table, tmp_path / "run", folds=[0], threads=1)
    corrected = table.with_patches([replace(table.patches[0], tumour="drawn melanoma"), *table.patches[1:]])
    with pytest.raises(UsageError) as caught:
        train_recipe(recipe, corrected, tmp_path / "run", threads=1)
    assert [line.split(": ")[1] for line in caught.value.details] == ["columns_sha256"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_same_pixels_under_two_names_are_refused_as_check_refuses_them(
    tmp_path: Path, quick: Recipe, table: PatchTable, split: str
) -> None:
    """A table written by hand: the copy is in another fold, or held out."""
    first = table.patches[0]
    assert first.fold is not None
    fold = 1 - first.fold if split == "train" else None
    copy = replace(first, patch_id="copy", path=str(tmp_path / "copy.png"), case="other", split=split, fold=fold)
    shutil.copy(table.file(first), copy.path)
    whole = replace(table, patches=(*table.patches, copy), origins=())
    with pytest.raises(LeakError, match="1 images appear under more than one name") as caught:
        train_recipe(quick, whole, tmp_path / "run", threads=1)
    names = (first.patch_id, "copy") if split == "train" else (f"{first.patch_id} (train)", "copy (test)")
    assert caught.value.details == (" = ".join(names),)
    assert caught.value.fix == check(whole, join_duplicates=False).problems[0].fix
    assert not (tmp_path / "run").exists()


def test_copies_among_test_patches_and_test_images_that_are_away_stop_nobody(
    tmp_path: Path, quick: Recipe, table: PatchTable
) -> None:
    first = table.patches[0]
    held = tuple(replace(p, split="test", fold=None) if p.case == first.case else p for p in table)
    twice = [replace(held[0], patch_id=name, path=str(tmp_path / name)) for name in ("copy.png", "away.png")]
    shutil.copy(table.file(first), tmp_path / "copy.png")
    whole = replace(table, patches=(*held, *twice), origins=())
    assert gather(quick, whole).table.ids == tuple(p.patch_id for p in held if p.split == "train")


def test_a_member_is_added_and_the_blend_changed_at_any_time(
    tmp_path: Path, quick: Recipe, recipe_path: Path, table: PatchTable
) -> None:
    train_recipe(quick, table, tmp_path / "run", threads=1)
    said: list[str] = []
    more = add_member(recipe_path, "  vit: {backbone: test_vit, image: {size: 64}}\nblend: equal\n")
    run = train_recipe(more, table, tmp_path / "run", threads=1, report=said.append)
    assert run.members == ("micro", "vit")
    assert run.recipe["blend"]["kind"] == "equal"
    assert said[:2] == ["micro fold 0: done already", "micro fold 1: done already"]
    assert run.oof("vit").ids == run.oof("micro").ids
    assert not np.array_equal(run.oof("vit").logits, run.oof("micro").logits)
    assert set(run.scores(by="scanner")) == {f"{m}/Scanner {s}" for m in ("micro", "vit") for s in "ABC"}
    assert run.status().finished


def test_what_belongs_to_the_machine_is_no_difference(tmp_path: Path, quick: Recipe, table: PatchTable) -> None:
    train_recipe(quick, table, tmp_path / "run", folds=[0], threads=1)
    run = train_recipe(quick, table, tmp_path / "run", machine=Machine(precision="float32", workers=0, part=3))
    assert run.status().finished


def test_one_member_fails_the_others_go_on_and_a_later_run_tries_again(
    tmp_path: Path, quick: Recipe, recipe_path: Path, table: PatchTable
) -> None:
    lost = tmp_path / "lost.safetensors"
    recipe = add_member(recipe_path, f"  a_lost: {{backbone: test_vit, pretrained: {lost}}}\n")
    recipe = replace(recipe, members=dict(sorted(recipe.members.items())))
    with pytest.raises(WeightsError) as caught:
        train_recipe(recipe, table, tmp_path / "run", threads=1)
    assert caught.value.fix.endswith("repeat the command: only these are trained again")
    assert "2 of 4 folds failed" in caught.value.problem
    assert str(lost) in caught.value.details[0]
    status = open_run(tmp_path / "run").status()
    assert [[fold.state for fold in member.folds] for member in status.members] == [["failed"] * 2, ["done"] * 2]
    assert str(lost) in status.members[0].folds[0].problem
    with pytest.raises(DataError, match="not trained on every fold"):
        open_run(tmp_path / "run").oof("a_lost")

    from midog.models.build import build_backbone
    from midog.models.weights import write_tensors

    write_tensors(lost, build_backbone("test_vit", "random", seed=3).state_dict())
    run = train_recipe(recipe, table, tmp_path / "run", threads=1)
    assert run.status().finished
    assert not list((tmp_path / "run").rglob("failed.json"))


def test_other_pretrained_weights_are_a_difference(tmp_path: Path, recipe_path: Path, table: PatchTable) -> None:
    from midog.models.build import build_backbone
    from midog.models.weights import write_tensors

    weights = tmp_path / "test_vit.safetensors"
    write_tensors(weights, build_backbone("test_vit", "random", seed=1).state_dict())
    recipe = add_member(recipe_path, f"  vit: {{backbone: test_vit, pretrained: {weights}, image: {{size: 64}}}}\n")
    train_recipe(recipe, table, tmp_path / "run", members=["vit"], folds=[0], threads=1)
    write_tensors(weights, build_backbone("test_vit", "random", seed=2).state_dict())
    with pytest.raises(UsageError) as caught:
        train_recipe(recipe, table, tmp_path / "run", threads=1)
    assert [line.split(": ")[1] for line in caught.value.details] == ["pretrained"]


def test_leave_one_scanner_out(tmp_path: Path, recipe_path: Path, table: PatchTable) -> None:
    recipe = load_recipe(recipe_path, [*QUICK, "folds=scanner"])
    run = train_recipe(recipe, table, tmp_path / "run", threads=1)
    assert run.fold_names == ("Scanner A", "Scanner B", "Scanner C")
    oof = run.oof("micro")
    assert [run.fold_names[k] for k in oof.folds] == list(table.column("scanner"))
    train_recipe(recipe, table, tmp_path / "run", folds=["Scanner B"], threads=1)
    with pytest.raises(UsageError, match="did you mean Scanner B"):
        train_recipe(recipe, table, tmp_path / "run", folds=["scanner B"], threads=1)


def test_the_run_carries_its_provenance(tmp_path: Path, quick: Recipe, table: PatchTable) -> None:
    run = train_recipe(quick, table, tmp_path / "run", folds=[0], threads=1)
    assert run.manifest["seed"] == 0
    assert run.manifest["data_sha256"] == table.data_hash
    assert run.manifest["folds_sha256"] == table.folds_hash
    assert run.manifest["threads"] == 1 and run.manifest["device"]
    assert run.manifest["versions"]["torch"].startswith("2.")
    assert "git" in run.manifest
    assert run.recipe == resolved(quick)
    assert resolved(load_recipe(run.path / "recipe.yaml")) == resolved(quick)
    assert all(Path(patch.path).is_absolute() for patch in run.table())


def test_the_preview_shows_patches_and_their_augmentations(tmp_path: Path, quick: Recipe, table: PatchTable) -> None:
    from PIL import Image

    path = preview_augmentation(quick, table, tmp_path / "sheet.png")
    with Image.open(path) as sheet:
        assert sheet.size == (8 * 128 + 7 * 4, 8 * 128 + 7 * 4)
        pixels = np.asarray(sheet)
    assert not np.array_equal(pixels[:128, 132:260], pixels[:128, 264:392])
    with pytest.raises(UsageError, match="did you mean micro"):
        preview_augmentation(quick, table, tmp_path / "sheet.png", "mikro")


def test_tuning_that_does_not_fit_is_refused_before_anything_is_trained(tmp_path: Path, table: PatchTable) -> None:
    recipe = load_recipe("smoke", ["members.vit.tune.targets=attn.qvk", "members.convnext.tune={kind: lora, rank: 99}"])
    with pytest.raises(UsageError, match="nothing was trained") as caught:
        train_recipe(recipe, table, tmp_path / "run")
    assert [line.split(":")[0] for line in caught.value.details] == ["members.vit.tune", "members.convnext.tune"]
    assert "did you mean attn.qkv" in caught.value.fix
    assert not (tmp_path / "run").exists()


def test_failures_are_told_by_reason_each_with_its_fix(tmp_path: Path, table: PatchTable) -> None:
    recipe = load_recipe("smoke", ["each.pretrained=record"])
    with pytest.raises(WeightsError) as caught:
        train_recipe(recipe, table, tmp_path / "run", pretrained=tmp_path)
    first, fix, *_ = caught.value.details
    assert first.startswith("vit fold 0, vit fold 1: pretrained weights of test_vit")
    assert fix.strip().startswith("fix: midog models pull test_vit")


def test_checkpoints_that_a_killed_process_left_beside_a_fold_that_is_done_go(
    tmp_path: Path, quick: Recipe, table: PatchTable
) -> None:
    run = train_recipe(quick, table, tmp_path / "run", folds=[0], threads=1)
    left = [run.fold_folder("micro", 0) / name for name in CHECKPOINTS]
    for path in left:
        path.write_bytes(b"left")
    with hold(run.fold_folder("micro", 0)):  # its process may be about to remove them itself
        train_recipe(quick, table, tmp_path / "run", folds=[0], threads=1)
        assert all(path.is_file() for path in left)
    train_recipe(quick, table, tmp_path / "run", folds=[0], threads=1)
    assert not any(path.exists() for path in left)


def test_a_fold_that_is_left_alone_is_trained_on_a_gpu_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert find_place(gpus=[2, 3]).machine.device == "cuda:2"
    assert find_place(gpus=[3]).machine.device == "cuda:3"
    assert find_place().machine.device == "auto"
    assert find_place(gpus=[2, 3], machine=Machine(device="cpu")).machine.device == "cpu"


def test_a_dry_run_minds_the_gpus_that_are_named(
    recipe_path: Path, table_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert midog(["train", str(recipe_path), str(table_path), "--dry-run", "--gpus", "97"]) == 2
    assert "there is no GPU 97" in capsys.readouterr().err


def test_the_next_command_is_one_that_can_be_typed(
    tmp_path: Path,
    recipe_path: Path,
    table_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    text = recipe_path.read_text()
    recipe_path.write_text(f"{text}  vit: {{backbone: test_vit, image: {{size: 64}}}}\nblend: equal\n")
    typed = ["train", str(recipe_path), str(table_path), "-o", "run", "--set", QUICK[0], "--set", QUICK[1]]
    for more, wanted in {
        ("--member", "vit", "--fold", "0"): "midog status run",
        ("--member", "vit"): "midog blend run:vit -o blends/run",
        (): "midog blend run -o blends/run",
    }.items():
        assert midog([*typed, *more, "--threads", "1"]) == 0
        command = capsys.readouterr().err.rstrip().rpartition("next: ")[2]
        assert command == wanted
        assert midog(command.split()[1:]) == 0
        capsys.readouterr()
