from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from augment.views import VIEW_NAMES, VIEW_SETS
from ensemble.oof import align, split_spec
from midog.data.folds import make_folds
from midog.data.patches import PatchTable
from midog.errors import DataError, UsageError
from midog.files import read_csv, read_json, sha256_file, write_csv, write_json


def other_run(make: Any, tmp_path: Path, table: PatchTable, name: str = "two", member: str = "other") -> Path:
    return make.run(tmp_path / "runs" / name, table, {member: make.logits(table, 1.0, 9)})


def test_all_members_of_a_run(make: Any, run: Path, table: PatchTable) -> None:
    oof = align([run])
    assert oof.names == ("good", "fair", "noise") and oof.ids == table.ids
    assert np.array_equal(oof.logits[:, 0], make.logits(table, 1.2, 1))
    assert np.array_equal(oof.folds, table.folds) and oof.prevalence == table.labels.mean()


def test_views_average_logits(make: Any, run: Path) -> None:
    oof = align([run])
    assert np.array_equal(oof.views("none"), oof.logits[:, :, VIEW_NAMES.index("identity")])
    np.testing.assert_allclose(oof.views("d4"), oof.logits[:, :, :8].mean(axis=2))
    np.testing.assert_allclose(oof.views("stain"), oof.logits[:, :, [0, 8]].mean(axis=2))
    np.testing.assert_allclose(oof.views("macenko"), oof.logits[:, :, [0, 9]].mean(axis=2))
    np.testing.assert_allclose(oof.views("d4_macenko"), oof.logits[:, :, [*range(8), 9]].mean(axis=2))
    turns = [VIEW_NAMES.index(f"rot{angle}") for angle in (90, 180, 270)]
    np.testing.assert_allclose(oof.views("rot4"), oof.logits[:, :, [0, *turns]].mean(axis=2))
    with pytest.raises(UsageError, match="unknown views"):
        oof.views("d8")


def test_members_of_an_earlier_release_blend_in_the_views_that_they_have(make: Any, run: Path) -> None:
    for folder in sorted(run.glob("*/fold_*")):
        header, rows = read_csv(folder / "oof.csv")
        assert header[-1] == "logit_macenko"
        write_csv(folder / "oof.csv", header[:-1], [row[:-1] for row in rows])
        write_json(
            folder / "done.json", {**read_json(folder / "done.json"), "oof_sha256": sha256_file(folder / "oof.csv")}
        )
    oof = align([run])
    assert [views for views in VIEW_SETS if oof.holds(views)] == ["none", "rot4", "d4", "stain", "d4_stain"]
    np.testing.assert_allclose(oof.views("d4_stain"), oof.logits[:, :, :9].mean(axis=2))
    with pytest.raises(DataError, match="views macenko are not stored for all of good, fair, noise") as caught:
        oof.views("macenko")
    assert "--views d4" in caught.value.fix


def test_one_member_of_several_runs_and_their_names(make: Any, run: Path, tmp_path: Path, table: PatchTable) -> None:
    make.run(tmp_path / "runs" / "two", table, {"good": make.logits(table, 1.0, 7), "new": make.logits(table, 1.0, 8)})
    assert align([f"{run}:good", f"{run.parent / 'two'}:new"]).names == ("good", "new")
    assert align([run, run.parent / "two"]).names == ("one/good", "fair", "noise", "two/good", "new")
    make.run(tmp_path / "old" / "one", table, {"good": make.logits(table, 1.0, 7)})
    assert align([f"{run}:good", tmp_path / "old" / "one"]).names == ("runs/one/good", "old/one/good")


def test_rows_in_another_order_are_aligned(make: Any, run: Path, tmp_path: Path, table: PatchTable) -> None:
    turned = table.subset(np.arange(len(table))[::-1])
    two = make.run(tmp_path / "runs" / "two", turned, {"other": make.logits(table, 1.0, 9)[::-1]})
    oof = align([run, two])
    assert oof.ids == table.ids and np.array_equal(oof.logits[:, 3], make.logits(table, 1.0, 9))


def test_test_rows_do_not_count(make: Any, tmp_path: Path, table: PatchTable) -> None:
    mixed = table.with_patches(replace(p, split="test", fold=None) if p.case == "case03" else p for p in table)
    oof = align([make.run(tmp_path / "runs" / "x", mixed, {"a": make.logits(table, 1.0, 1)})])
    assert len(oof.ids) == len(table) - 10 and "case03" not in set(oof.cases)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("patches", ["300 patches missing, e.g. set/0000, set/0001", "300 patches of other data, e.g. new/set/0000"]),
        ("fewer", ["10 patches missing, e.g. set/0003"]),
        ("labels", ["1 patches with another label, e.g. set/0005"]),
        ("cases", ["10 patches with another case, e.g. set/0004 has other instead of case04"]),
        ("folds", ["patches in other folds, e.g."]),
    ],
)
def test_other_patches_labels_cases_or_folds(
    make: Any, run: Path, tmp_path: Path, table: PatchTable, change: str, words: list[str]
) -> None:
    patches = list(table)
    if change == "patches":
        patches = [replace(p, patch_id=f"new/{p.patch_id}") for p in patches]
    if change == "fewer":
        patches = [p for p in patches if p.case != "case03"]
    if change == "labels":
        patches = [replace(p, label=1 - int(p.label or 0)) if p.patch_id == "set/0005" else p for p in patches]
    if change == "cases":
        patches = [replace(p, case="other") if p.case == "case04" else p for p in patches]
    other = PatchTable(tuple(patches), table.root)
    if change == "folds":
        other = make_folds(other, "grouped:2:5")
    with pytest.raises(DataError) as error:
        align([run, other_run(make, tmp_path, other)])
    assert "other: " in str(error.value) and "fix:" in str(error.value)
    for text in words:
        assert text in str(error.value)


def test_leave_one_out_does_not_mix_with_folds(make: Any, run: Path, tmp_path: Path, table: PatchTable) -> None:
    """Same patches.csv, but one run leaves scanners out: its logits are not out of the other's folds."""
    position = {"CS2": 0, "XR": 1}
    by_scanner = table.with_patches(replace(p, fold=position[p.scanner]) for p in table)
    with pytest.raises(DataError, match="in other folds"):
        align([run, other_run(make, tmp_path, by_scanner)])


def test_missing_folds_of_all_members_are_listed(make: Any, tmp_path: Path, table: PatchTable) -> None:
    members = {name: make.logits(table, 1.0, 1) for name in ("a", "b")}
    path = make.run(tmp_path / "runs" / "x", table, members, undone=["a/0", "b/1"])
    with pytest.raises(DataError) as error:
        align([path])
    assert "a of " in str(error.value) and "b of " in str(error.value) and "midog train" in str(error.value)
    assert "finished" not in error.value.fix


def test_members_that_are_finished_are_named_so_that_they_can_be_typed(
    make: Any, run: Path, tmp_path: Path, table: PatchTable
) -> None:
    members = {name: make.logits(table, 1.0, 1) for name in ("a", "b")}
    path = make.run(tmp_path / "runs" / "x", table, members, undone=["a/0"])
    with pytest.raises(DataError) as error:
        align([f"{run}:good", path])
    command, _, named = error.value.fix.partition("; or name only what is finished: ")
    assert command.startswith("midog train ") and command.endswith("--member a")
    assert named.split() == [f"{run}:good", f"{path}:b"]
    assert align(named.split()).names == ("good", "b")


def test_a_missing_or_doubled_patch_is_an_error(make: Any, run: Path) -> None:
    file = run / "good" / "fold_0" / "oof.csv"
    lines = file.read_text(encoding="utf-8").splitlines()
    header, rows = lines[0].split(","), [line.split(",") for line in lines[1:]]
    done = file.with_name("done.json")

    def rewrite(changed: list[list[str]]) -> None:
        write_csv(file, header, changed)
        write_json(done, {**read_json(done), "oof_sha256": sha256_file(file)})

    rewrite(rows[1:])
    with pytest.raises(DataError, match=rf"good: {rows[0][0]}: no logits"):
        align([run])
    rewrite([*rows, rows[3]])
    with pytest.raises(DataError, match=f"{rows[3][0]} appears twice"):
        align([run])


def test_names_that_are_wrong_or_given_twice(make: Any, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean good"):
        align([f"{run}:god"])
    with pytest.raises(UsageError, match="named twice"):
        align([run, f"{run}:good"])
    with pytest.raises(UsageError, match="nothing to blend"):
        align([])
    with pytest.raises(DataError, match="is no run"):
        align([tmp_path / "nowhere"])


def test_a_colon_in_a_folder_name(make: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    assert split_spec(folder) == (folder, None)
    assert split_spec(f"{folder}:m") == (folder, "m")
