from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import midog
from midog.data.counts import count_by
from midog.data.folds import assign, extend, hold_out, make_folds
from midog.data.patches import Patch, PatchTable, read_table
from midog.data.readers import read_layout
from midog.data.synthetic import draw
from midog.errors import DataError, LeakError, UsageError

from .conftest import save


def drawn(cases: int, seed: int, domains: int = 2, per_case: int = 9) -> PatchTable:
    """Cases of random size, both labels in each."""
    rng = np.random.default_rng(seed)
    patches = []
    for case in range(cases):
        for i in range(rng.integers(2, per_case)):
            label = i if i < 2 else int(rng.random() < 0.25)
            domain = f"d{case % domains}"
            patches.append(Patch(f"{case}/{i}", "x.png", label, f"case{case}", domain, scanner=f"s{case % domains}"))
    return PatchTable(tuple(patches), Path("/data"))


@settings(max_examples=30, deadline=None)
@given(st.integers(6, 40), st.integers(2, 5), st.integers(0, 99))
def test_folds_keep_cases_whole_and_every_fold_has_both_classes(cases: int, count: int, seed: int) -> None:
    table = make_folds(drawn(cases, seed), f"grouped:{count}:{seed}")
    assert set(table.folds.tolist()) == set(range(count))
    folds_of: dict[str, set[int | None]] = {}
    for patch in table:
        folds_of.setdefault(patch.case, set()).add(patch.fold)
    assert all(len(folds) == 1 for folds in folds_of.values())
    assignment = assign(table, "fold")
    assert assignment.names == tuple(map(str, range(count)))
    np.testing.assert_array_equal(assignment.index, table.folds)
    assert assignment.index.dtype == np.int32


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.permutations(range(12)))
def test_folds_depend_on_the_cases_not_on_the_order_of_rows(seed: int, order: list[int]) -> None:
    table = drawn(12, seed)
    by_case = [[i for i, p in enumerate(table) if p.case == f"case{c}"] for c in order]
    shuffled = table.subset([i for rows in by_case for i in rows])
    fold = {p.case: p.fold for p in make_folds(table, "grouped:3:1")}
    assert {p.case: p.fold for p in make_folds(shuffled, "grouped:3:1")} == fold


def test_seeds_differ_and_repeat() -> None:
    table = drawn(30, 0)
    assert make_folds(table, "grouped:5:0").folds_hash == make_folds(table, "grouped:5").folds_hash
    assert make_folds(table, "grouped:5:0").folds_hash != make_folds(table, "grouped:5:1").folds_hash


def test_real_folds_are_balanced_on_label_within_domain(real: Path) -> None:
    table = make_folds(read_layout([real / "amibr"]))
    for fold in count_by(table, "fold"):
        assert 0.17 < fold.atypical / fold.patches < 0.27  # 0.224 in all
        assert 0.8 < fold.patches / (2894 / 5) < 1.2
    # No domain is missing from a fold, and equal cases of equal domains would do worse by chance.
    cells = count_by(table, "domain", "fold")
    assert len(cells) == 6 * 5 and min(cell.atypical for cell in cells) >= 3


def test_real_hold_out_is_a_fifth_of_each_domain(real: Path) -> None:
    table = hold_out(read_layout([real / "amibr"]), 0.2)
    whole = {c.group[0]: c for c in count_by(table, "domain")}
    for held in count_by(table.subset(table.column("split") == "test"), "domain"):
        assert 0.13 < held.patches / whole[held.group[0]].patches < 0.27
        assert 0.13 < held.atypical / whole[held.group[0]].atypical < 0.27
    assert make_folds(table).folds[table.column("split") == "test"].tolist() == [-1] * int(
        (table.column("split") == "test").sum()
    )


def test_amibr_folds_are_those_of_the_published_split(real: Path) -> None:
    """The published scripts split the rows of their train CSV by its slide column; done here on that file itself."""
    from sklearn.model_selection import StratifiedGroupKFold

    with (real / "amibr" / "amibr_train_split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    label = [{"Atypical": 0, "Normal": 1}[row["final_label"]] for row in rows]
    slides = [row["slide"] for row in rows]
    expected = {}
    splitter = StratifiedGroupKFold(n_splits=5, shuffle=True, random_state=42)
    for fold, (_, held) in enumerate(splitter.split(rows, label, slides)):
        expected.update({f"AMi-Br/{Path(rows[i]['dataset_uid']).stem}": fold for i in held})
    table = make_folds(read_layout([real / "amibr"]), "amibr")
    assert {p.patch_id: p.fold for p in table} == expected


def test_amibr_folds_are_for_amibr_alone() -> None:
    with pytest.raises(DataError, match="are not AMi-Br's"):
        make_folds(drawn(9, 0), "amibr")


@pytest.mark.parametrize(
    "spec", ["grouped", "grouped:x:0", "group:5:0", "5", "grouped:1:0", "grouped:5:0:0", "grouped:-2:0"]
)
def test_another_spec_is_a_usage_error(spec: str) -> None:
    with pytest.raises(UsageError, match="grouped:5:0"):
        make_folds(drawn(9, 0), spec)


def test_fewer_cases_than_folds() -> None:
    with pytest.raises(DataError, match="4 cases for 5 folds"):
        make_folds(drawn(4, 0))


def test_a_class_in_fewer_cases_than_folds() -> None:
    table = drawn(9, 0)
    rare = table.with_patches(replace(p, label=0 if p.case != "case1" else p.label) for p in table)
    with pytest.raises(DataError, match="only 1 cases have a patch that is atypical"):
        make_folds(rare)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 0.5), st.integers(0, 50))
def test_hold_out_takes_whole_cases_and_about_the_share(share: float, seed: int) -> None:
    table = hold_out(drawn(60, seed), share, seed)
    test = table.column("split") == "test"
    assert abs(test.mean() - share) < 0.06
    assert not set(table.column("case")[test]) & set(table.column("case")[~test])


def test_hold_out_keeps_a_published_split() -> None:
    table = hold_out(drawn(30, 0), 0.2)
    with pytest.raises(UsageError, match="already has"):
        hold_out(table, 0.2)


@pytest.mark.parametrize("share", [0, 1, -0.2, 20, float("nan")])
def test_hold_out_share(share: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        hold_out(drawn(9, 0), share)


def test_extend_moves_no_old_case_and_places_every_new_one() -> None:
    whole = drawn(50, 3)
    old = make_folds(hold_out(whole.subset([int(p.case[4:]) < 30 for p in whole]), 0.2))
    longer = extend(whole, old)
    before = {p.case: (p.split, p.fold) for p in old}
    after = {p.case: (p.split, p.fold) for p in longer}
    assert {case: after[case] for case in before} == before
    new = [after[case] for case in after if case not in before]
    assert len(new) == 20 and all(split == "train" and fold in range(5) for split, fold in new)
    sizes = [c.patches for c in count_by(longer.subset(longer.column("split") == "train"), "fold")]
    assert max(sizes) - min(sizes) <= 12


def test_extend_needs_folds() -> None:
    with pytest.raises(DataError, match="no folds to keep"):
        extend(drawn(9, 0), drawn(5, 0))


@pytest.fixture
def held_out(tmp_path: Path) -> tuple[Path, Path, PatchTable]:
    """A drawn data set, its table with folds and held-out cases, and that table read."""
    data = draw(tmp_path / "old", cases=10, per_case=4)
    path = tmp_path / "old.csv"
    midog.read_patches(data, folds="grouped:2:0", hold_out=0.3).write(path)
    return data, path, read_table(path)


def copies(table: PatchTable, cases: list[str], folder: Path, case: str = "slide77") -> Path:
    """Images of `cases` under other names, as the case `case` of another data set, with one of its own."""
    folder.mkdir()
    rows = [patch for patch in table if patch.case in cases]
    for number, patch in enumerate(rows):
        shutil.copy(table.file(patch), folder / f"{number}.png")
    save(folder / "own.png", 1000)
    lines = [f"{number}.png,{patch.label},{case}" for number, patch in enumerate(rows)]
    (folder / "new.csv").write_text("\n".join(["path,label,case", *lines, f"own.png,1,{case}"]) + "\n")
    return folder / "new.csv"


def case_in(table: PatchTable, split: str) -> str:
    return next(patch.case for patch in table if patch.split == split)


@pytest.mark.parametrize("first", ["old", "new"])
def test_a_held_out_case_stays_held_out_under_another_name(
    held_out: tuple[Path, Path, PatchTable], tmp_path: Path, first: str
) -> None:
    data, path, old = held_out
    new = copies(old, [case_in(old, "test")], tmp_path / "new")
    order = (data, new) if first == "old" else (new, data)
    checked = midog.read_patches(*order, join_duplicates=True, extend=path)
    assert not checked.problems
    place = {name: (p.split, p.fold) for p in checked.table for name in (p.patch_id, *p.aliases)}
    assert place["own.png"] == ("test", None)
    assert {p.patch_id: place[p.patch_id] for p in old} == {p.patch_id: (p.split, p.fold) for p in old}


def test_a_held_out_case_is_known_by_its_pixels_where_the_old_data_are_left_out(
    held_out: tuple[Path, Path, PatchTable], tmp_path: Path
) -> None:
    _, path, old = held_out
    new = copies(old, [case_in(old, "test")], tmp_path / "new")
    assert {p.split for p in midog.read_patches(new, extend=path).table} == {"test"}


@pytest.mark.parametrize("first", ["old", "new"])
def test_a_case_that_links_a_held_out_case_to_a_training_case_is_refused(
    held_out: tuple[Path, Path, PatchTable], tmp_path: Path, first: str
) -> None:
    data, path, old = held_out
    train, test = case_in(old, "train"), case_in(old, "test")
    new = copies(old, [train, test], tmp_path / "new")
    order = (data, new) if first == "old" else (new, data)
    with pytest.raises(LeakError, match="more than one fold or split") as caught:
        midog.read_patches(*order, join_duplicates=True, extend=path)
    (line,) = caught.value.details
    assert f"test as {test}" in line and f"as {train}" in line and "fold" in line
    assert "--join-duplicates --folds grouped:5:0" in caught.value.fix


def test_leave_one_out() -> None:
    table = hold_out(drawn(30, 0), 0.2)
    assignment = assign(table, "scanner")
    assert assignment.names == ("s0", "s1")
    test = table.column("split") == "test"
    assert (assignment.index[test] == -1).all()
    assert all(p.scanner == assignment.names[i] for p, i in zip(table, assignment.index, strict=True) if i >= 0)


def test_assign_refuses_a_case_in_two_folds_and_in_train_and_test() -> None:
    table = make_folds(drawn(20, 0))
    torn = table.with_patches([replace(table.patches[0], fold=(table.folds[0] + 1) % 5), *table.patches[1:]])
    with pytest.raises(LeakError, match=r"case case0: fold \d, fold \d"):
        assign(torn, "fold")
    torn = table.with_patches([replace(table.patches[0], split="test", fold=None), *table.patches[1:]])
    for column in ("fold", "scanner"):
        with pytest.raises(LeakError, match="test"):
            assign(torn, column)
    torn = table.with_patches([replace(table.patches[0], scanner="s1"), *table.patches[1:]])
    with pytest.raises(LeakError, match="more than one scanner"):
        assign(torn, "scanner")


def test_assign_refuses_what_cannot_be_trained() -> None:
    table = make_folds(drawn(20, 0))
    with pytest.raises(DataError, match="have no fold"):
        assign(drawn(20, 0), "fold")
    with pytest.raises(DataError, match="have no laboratory"):
        assign(table, "laboratory")
    with pytest.raises(UsageError, match="did you mean scanner"):
        assign(table, "scaner")
    flat = table.with_patches(replace(p, label=0 if p.fold == 3 else p.label) for p in table)
    with pytest.raises(DataError, match="fold 3 has no atypical patch"):
        assign(flat, "fold")
    unlabelled = table.with_patches([replace(table.patches[0], label=None), *table.patches[1:]])
    with pytest.raises(DataError, match="1 patches have no label"):
        assign(unlabelled, "fold")
    alone = table.with_patches(replace(p, scanner="one") for p in table)
    with pytest.raises(DataError, match="only 1 scanner"):
        assign(alone, "scanner")


def test_extend_keeps_the_published_split_of_new_cases() -> None:
    whole = drawn(30, 3)
    old = make_folds(whole.subset([int(p.case[4:]) < 20 for p in whole]))
    published = whole.with_patches(replace(p, split="test" if p.case == "case25" else "train") for p in whole)
    longer = extend(published, old)
    assert {(p.split, p.fold) for p in longer if p.case == "case25"} == {("test", None)}


def test_tables_that_nobody_trains_on_pass_without_classes() -> None:
    unlabelled = drawn(9, 0).with_patches(replace(p, label=None) for p in drawn(9, 0))
    assert set(make_folds(unlabelled).folds.tolist()) == set(range(5))
    test = drawn(9, 0).with_patches(replace(p, split="test") for p in drawn(9, 0))
    assert set(make_folds(test).folds.tolist()) == {-1}
