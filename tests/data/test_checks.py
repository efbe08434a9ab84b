from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import midog
from midog.data.checks import Checked, check
from midog.data.folds import assign, hold_out, make_folds
from midog.data.patches import Patch, PatchTable, Problem, read_table
from midog.data.readers import read_layout
from midog.errors import CheckFailed, DataError, LeakError

from .conftest import Make, noise, save


def kinds(problems: Sequence[Problem]) -> list[str]:
    return [problem.kind for problem in problems]


def checked(path: Path | list[Path], store: Path, join: bool = False) -> Checked:
    return check(read_layout(path if isinstance(path, list) else [path]), store, join)


def test_a_good_table_has_no_problem(make: Make, store: Path) -> None:
    result = checked(make([("a.png", 1, "c"), ("b.png", 0, "d")]), store)
    assert not result.problems and result.error() is None
    result.require()
    assert "2 patches of 2 cases: 1 atypical, 1 normal" in result.text()


def test_everything_is_reported_at_once(make: Make, store: Path) -> None:
    header = "path,label,case,split,fold,slide,x,y"
    rows = [
        ("a.png", 1, "c1", "train", 0, "", "", ""),
        ("b.png", 0, "c1", "train", 1, "", "", ""),
        ("same.png", 0, "c2", "train", 0, "", "", ""),
        ("gone.png", 0, "c3", "train", 0, "", "", ""),
        ("grey.png", 0, "c4", "train", 0, "", "", ""),
        ("small.png", 1, "c5", "train", 1, "", "", ""),
        ("cut.png", 1, "c6", "train", 1, "", "", ""),
        ("here.png", 1, "c7", "train", 1, "s1", 500, 500),
        ("near.png", 1, "c8", "train", 1, "s1", 627, 400),
        ("edge.png", 1, "c9", "train", 1, "s1", 628, 500),
    ]
    path = make(rows, header)
    folder = path.parent
    (folder / "same.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "gone.png").unlink()
    Image.fromarray(noise(1)[:, :, 0]).save(folder / "grey.png")
    Image.fromarray(noise(1)[:64, :64]).save(folder / "small.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:500])
    image = noise(77)
    image[-3:] = 0
    Image.fromarray(image).save(folder / "edge.png")
    result = checked(path, store)
    found = {problem.kind: problem for problem in result.problems if problem.kind != "leak"}
    assert set(found) == {"missing", "unreadable", "mode", "size", "contradiction"}
    assert found["missing"].details[0].startswith("plain.csv row 5: no such file")
    assert found["contradiction"].details == ("a.png (plain.csv row 2) atypical but same.png (plain.csv row 4) normal",)
    leaks = [problem for problem in result.problems if problem.kind == "leak"]
    assert [leak.details for leak in leaks] == [
        ("a.png = same.png",),
        ("here.png and near.png", "near.png and edge.png"),
        ("case c1: fold 0, fold 1",),
    ]
    assert "1 of them under more than one case" in leaks[0].problem and "--join-duplicates" in leaks[0].fix
    assert "1 patches lie at a slide border" in result.text()
    with pytest.raises(LeakError, match="8 kinds of problem"):
        result.require()
    with pytest.raises(LeakError):
        result.write(folder / "out.csv")
    assert not (folder / "out.csv").exists()
    assert len(json.loads(json.dumps(result.summary()))["problems"]) == 8


def test_exit_codes_follow_the_kind(make: Make, store: Path) -> None:
    missing = checked(make([("a.png", 1, "c")], images=False), store)
    assert isinstance(missing.error(), CheckFailed) and "row 2: no such file" in str(missing.error())
    same = make([("a.png", 1, "c")], folder="one")
    twice = checked([same, same], store).error()
    assert isinstance(twice, LeakError) and isinstance(twice, DataError)


def test_joined_rows_keep_the_first_with_aliases_votes_and_one_case(make: Make, store: Path, tmp_path: Path) -> None:
    one = make([("a.png", 1, "c1", "2/3"), ("b.png", 0, "c1", "")], "path,label,case,votes", "one")
    two = make(
        [("z.png", 1, "x1", "2/3"), ("y.png", 0, "x1", "1/4"), ("w.png", 1, "x2", "")], "path,label,case,votes", "two"
    )
    save(tmp_path / "two" / "w.png", 5)
    save(tmp_path / "two" / "y.png", 1)  # = one/b.png
    result = checked([one, two], store, join=True)
    assert not result.problems
    assert result.table.ids == ("a.png", "b.png", "w.png")
    first, second, third = result.table.patches
    assert (first.aliases, first.votes) == (("z.png",), "2/3")  # equal votes are the same votes
    assert (second.aliases, second.votes) == (("y.png",), "1/4")
    assert third.case == "x2"
    assert "x1 is now part of c1" in result.text()
    back = read_table(result.write(tmp_path / "patches.csv"))
    assert back.patches[0].aliases == ("z.png",)
    assert not check(back, store).problems


def test_joining_merges_cases_over_several_steps(tmp_path: Path, store: Path) -> None:
    """a–b share an image, b–c another: all three are one case, or the folds would leak."""
    names = {"a/1": 1, "b/1": 1, "b/2": 2, "c/2": 2, "c/3": 3, "d/4": 4}
    patches = []
    for name, seed in names.items():
        save(tmp_path / f"{name}.png", seed)
        patches.append(Patch(name, f"{name}.png", 0, name[0]))
    joined = check(PatchTable(tuple(patches), tmp_path), store, join_duplicates=True).table
    assert joined.ids == ("a/1", "b/2", "c/3", "d/4") and joined.column("case").tolist() == ["a", "a", "a", "d"]


def test_joined_contradictions_are_told_and_joined_splits_refused(make: Make, store: Path) -> None:
    path = make([("a.png", 1, "c", "train"), ("b.png", 0, "c", "train")], "path,label,case,split")
    (path.parent / "b.png").write_bytes((path.parent / "a.png").read_bytes())
    result = checked(path, store, join=True)
    assert not result.problems and "contradictory labels; the first row's is kept" in result.text()
    path.write_text(path.read_text().replace("0,c,train", "0,d,test"))
    result = checked(path, store, join=True)
    assert kinds(result.problems) == ["leak"] and "a.png (train) = b.png (test)" in result.problems[0].details


def test_overlap_inside_a_case_is_a_note(make: Make, store: Path) -> None:
    rows = [("a.png", 1, "c", "s", 0, 0), ("b.png", 0, "c", "s", 127, 127), ("d.png", 0, "c", "s", 300, 0)]
    result = checked(make(rows, "path,label,case,slide,x,y"), store)
    assert not result.problems and "1 pairs of patches overlap inside one case" in result.text()


def test_text_shows_folds_and_domains(make: Make, store: Path) -> None:
    rows = [(f"{c}{i}.png", i, c, f"tumour {c in 'ab'}") for c in "abcdefgh" for i in (0, 1)]
    result = checked(make(rows, "path,label,case,tumour"), store)
    result = result.with_table(make_folds(hold_out(result.table, 0.25), "grouped:2:0"))
    text = result.text()
    assert "train  0" in text and "test   –" in text
    assert "atypical/normal  fold 0  fold 1  test" in text
    assert sum(c.patches for c in result.counts["domain_fold"]) == 16


def test_amibr_and_midog25_are_one_data_set_seen_twice(real: Path, store: Path) -> None:
    table = read_layout([real / "amibr", real / "midog25"])
    result = check(table, store)
    (leak,) = result.problems
    assert leak.problem == "1292 images appear under more than one name (1292 in AMi-Br and MIDOG25)"
    assert leak.details[0] == "AMi-Br/MIDOG21_6 = MIDOG25/8110"
    with pytest.raises(LeakError, match="AMi-Br/MIDOG21_6 = MIDOG25/8110"):
        result.require()
    joined = check(table, store, join_duplicates=True)
    assert not joined.problems and len(joined.table) == 2894 + 1786 - 1292
    assert sum(bool(p.aliases) for p in joined.table) == 1292
    assert all(p.aliases == () or p.votes.endswith("/3") for p in joined.table)
    assert assign(make_folds(joined.table), "fold").names == tuple("01234")


def test_real_amibr_is_fine_and_its_overlaps_are_counted(real: Path, store: Path) -> None:
    table = read_layout([real / "amibr"])
    result = check(table, store)
    assert not result.problems
    place: dict[str, list[tuple[int, int]]] = {}
    for origin in table.origins:
        place.setdefault(origin.slide, []).append((origin.x or 0, origin.y or 0))
    pairs = 0
    for spots in place.values():
        for i, (x, y) in enumerate(spots):
            pairs += sum(abs(x - a) < 128 and abs(y - b) < 128 for a, b in spots[:i])
    assert f"{pairs} pairs of patches overlap" in result.text() and pairs > 100


def test_labels_without_images_are_missing_with_row_numbers(real: Path, store: Path) -> None:
    result = checked(real / "labels" / "OMG-Octo_labels_only.csv", store)
    (missing,) = result.problems
    assert missing.problem == "1753 images are missing" and missing.details[0].startswith(
        "OMG-Octo_labels_only.csv row 2: "
    )


def test_an_unlabelled_table_is_a_note(tmp_path: Path, store: Path) -> None:
    save(tmp_path / "a.png", 0)
    table = PatchTable((Patch("a", "a.png", None, "c"),), tmp_path)
    result = check(table, store)
    assert not result.problems and "1 patches have no label" in result.text()
    one_class = check(table.with_patches([replace(table.patches[0], label=1)]), store)
    assert "every label is atypical" in one_class.text()
    assert np.array_equal(one_class.table.labels, [1])


def test_an_unlabelled_copy_contradicts_nothing_and_takes_the_label(make: Make, store: Path) -> None:
    path = make([("a.png", "", "c"), ("b.png", 1, "c")])
    (path.parent / "b.png").write_bytes((path.parent / "a.png").read_bytes())
    assert kinds(checked(path, store).problems) == ["leak"]
    assert checked(path, store, join=True).table.labels.tolist() == [1]


def test_atnorm_like_duplicates_with_contradicting_labels(tmp_path: Path, store: Path) -> None:
    for label in ("Atypical", "Normal"):
        save(tmp_path / "AtNorM-Br" / label / "x.png", 1)
        save(tmp_path / "AtNorM-Br" / label / f"{label}.png", len(label))
    result = checked(tmp_path / "AtNorM-Br", store)
    assert kinds(result.problems) == ["leak", "contradiction"]
    joined = checked(tmp_path / "AtNorM-Br", store, join=True)
    assert not joined.problems and len(joined.table) == 3


def test_a_fold_of_ones_own_without_a_class_is_a_problem_until_it_is_made_anew(make: Make) -> None:
    rows = [("a.png", 1, "a", 0), ("b.png", 0, "b", 0), ("c.png", 0, "c", 1), ("d.png", 1, "d", 0)]
    path = make(rows, "path,label,case,fold")
    found = midog.read_patches(path)
    assert [(p.kind, p.details) for p in found.problems] == [("data", ("fold 1: no atypical patch",))]
    made = midog.read_patches(path, folds="grouped:2:0")
    assert not made.problems and sorted(made.table.folds) == [0, 0, 1, 1]
