from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midog.data.counts import count_by
from midog.data.patches import Patch, PatchTable, concatenate, parse_label, parse_votes, read_table
from midog.errors import DataError, UsageError

A = Patch("d/a", "img/a.png", 1, "c1", "dom", votes="2/3", scanner="S")
B = Patch("d/b", "img/b.png", 0, "c2", "dom", split="test", aliases=("x", "y"))
C = Patch("d/c", "img/c.png", None, "c3", fold=10)
TABLE = PatchTable((A, B, C), Path("/data"))

word = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)
name = word.filter(lambda w: w.strip() == w and w)


def test_columns_of_a_table() -> None:
    assert TABLE.labels.tolist() == [1, 0, -1] and TABLE.labels.dtype == np.int8
    assert TABLE.folds.tolist() == [-1, -1, 10] and TABLE.folds.dtype == np.int32
    np.testing.assert_allclose(TABLE.soft_labels, [2 / 3, 0, np.nan])
    assert TABLE.column("aliases").tolist() == ["", "x;y", ""]
    assert TABLE.column("fold").tolist() == ["", "", "10"]


def test_unknown_column_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown column: tumor\n  fix: did you mean tumour"):
        TABLE.column("tumor")


@pytest.mark.parametrize(
    "index", [[0, 2], np.array([True, False, True]), [True, False, True], slice(0, 3, 2), range(0, 3, 2)]
)
def test_subset_takes_integers_and_masks(index: object) -> None:
    assert TABLE.subset(index).ids == ("d/a", "d/c")  # type: ignore[arg-type]


def test_subset_of_nothing_is_empty() -> None:
    assert len(TABLE.subset([])) == 0


def test_written_paths_are_relative_to_the_table_and_absolute_for_a_run(tmp_path: Path) -> None:
    table = replace(TABLE, root=tmp_path / "data")
    beside = table.write(tmp_path / "tables" / "patches.csv")
    assert "d/a,../data/img/a.png,1,c1,dom,train,," in beside.read_text()
    assert read_table(beside).file(A) != table.file(A)  # A's path means another file there; the read patch is right:
    assert read_table(beside).file(read_table(beside).patches[0]) == tmp_path / "data/img/a.png"
    run = read_table(table.write(tmp_path / "run" / "patches.csv", absolute=True))
    assert run.patches[0].path == str(tmp_path / "data/img/a.png")


@given(st.lists(st.tuples(name, word, word, st.sampled_from([None, 0, 1])), unique_by=lambda t: t[0], max_size=6))
def test_a_written_table_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple]) -> None:
    folder = tmp_path_factory.mktemp("t")
    patches = tuple(Patch(i, "p.png", label, case, domain) for i, case, domain, label in rows)
    table = PatchTable(patches, folder)
    back = read_table(table.write(folder / "t.csv")) if patches else table
    assert back.patches == patches
    assert (back.data_hash, back.folds_hash) == (table.data_hash, table.folds_hash)


def test_hashes_tell_what_they_should() -> None:
    moved = TABLE.with_patches(replace(p, path="/elsewhere/" + p.path, scanner="other") for p in TABLE)
    assert moved.data_hash == TABLE.data_hash
    relabelled = TABLE.with_patches((replace(A, label=0), B, C))
    assert relabelled.data_hash != TABLE.data_hash and relabelled.folds_hash == TABLE.folds_hash
    folded = TABLE.with_patches((replace(A, fold=1), B, C))
    assert folded.data_hash == TABLE.data_hash and folded.folds_hash != TABLE.folds_hash


def test_all_bad_rows_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "patch_id,path,label,split,fold,votes\na,a,perhaps,,,\na,a,1,dev,,\na,a,1,,x,\na,a,1,,,3/2\na,a,1,,,\na,a,1,,,\n"
    )
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert [line.split(":")[0] for line in caught.value.details] == ["row 2", "row 3", "row 4", "row 5", "row 7"]
    assert "unknown label 'perhaps'" in caught.value.details[0] and "first in row 6" in caught.value.details[4]


def test_a_foreign_csv_is_no_patch_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label\na,1\n")
    with pytest.raises(DataError, match="no column patch_id"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("words, label", [("AMF atypical 1 True TRUE Atypical", 1), ("NMF normal 0 False Normal", 0)])
def test_label_words(words: str, label: int) -> None:
    assert {parse_label(w) for w in words.split()} == {label}
    assert parse_label(" ") is None


def test_votes() -> None:
    assert parse_votes("2/3") == (2, 3) and parse_votes("") is None
    for bad in ("3", "4/3", "0/0", "a/b", "1/2/3", "-1/3"):
        with pytest.raises(ValueError, match="unknown votes"):
            parse_votes(bad)


def test_counts_by_fold_are_in_number_order() -> None:
    table = TABLE.with_patches((replace(A, fold=9), B, C))
    assert [c.group for c in count_by(table, "fold")] == [("",), ("9",), ("10",)]
    (whole,) = count_by(table)
    assert (whole.patches, whole.cases, whole.atypical, whole.normal, whole.unlabelled) == (3, 3, 1, 1, 1)


def test_concatenated_tables_find_their_files() -> None:
    other = PatchTable((Patch("e/a", "a.png", 1, "c"),), Path("/data/other"))
    both = concatenate([TABLE, other])
    assert [str(both.file(p)) for p in both] == [*(f"/data/img/{x}.png" for x in "abc"), "/data/other/a.png"]
