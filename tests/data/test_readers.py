from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import pytest

from midog.data.counts import count_by
from midog.data.patches import PatchTable
from midog.data.readers import read_images, read_layout, same_scanners
from midog.errors import DataError

from .conftest import Make, save

MIDOG_HEADER = "image_id,filename,coordinateX,coordinateY,Tumor,Scanner,Origin,Species,expert1,expert2,expert3,majority"


def notes(table: PatchTable) -> str:
    return "\n".join(finding.render() for finding in table.findings)


def midog_csv(folder: Path, rows: list[str], name: str = "MIDOG25_Atypical_Classification_Train_Set.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([MIDOG_HEADER, *rows]) + "\n")
    return folder / name


def midog_row(
    image: str, slide: str = "403.tiff", votes: str = "NMF,NMF,,NMF", x: int = 10, scanner: str = "S1"
) -> str:
    return f"{image},{slide},{x},20,human melanoma,{scanner},UMC Utrecht,Human,{votes}"


# ── real files ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_amibr_as_it_is_published(real: Path) -> None:
    table = read_layout([real / "amibr"])
    assert (len(table), int((table.labels == 1).sum()), len(set(table.column("case")))) == (2894, 648, 146)
    assert all(table.file(patch).is_file() for patch in table)
    first = table.patches[0]
    assert (first.patch_id, first.case, first.votes) == ("AMi-Br/MIDOG21_6", "MIDOG21/002", "0/3")
    assert first.domain == "human breast cancer | Hamamatsu XR | UMC Utrecht"
    scanners = {c.group: c.cases for c in count_by(table, "scanner", "laboratory")}
    assert scanners == {
        ("Hamamatsu XR", "UMC Utrecht"): 34,
        ("Hamamatsu S360", "UMC Utrecht"): 29,
        ("Aperio CS2", "UMC Utrecht"): 36,
        ("Aperio ScanScope XT", "UMC Utrecht"): 13,
        ("Leica SCN400", "TUPAC16 centre 2"): 17,
        ("Leica SCN400", "TUPAC16 centre 3"): 17,
    }
    assert ((table.soft_labels > 0.5) == (table.labels == 1)).all()


def test_the_published_split_csv_gives_the_same_table(real: Path) -> None:
    one, other = read_layout([real / "amibr" / "amibr_train_split.csv"]), read_layout([real / "amibr" / "AMI-BR.csv"])
    assert one.patches == other.patches


def test_midog25_shares_cases_and_domains_with_amibr(real: Path) -> None:
    table = read_layout([real / "midog25"])
    assert len(table) == 1786 and all(table.file(patch).is_file() for patch in table)
    amibr = read_layout([real / "amibr"])
    place = {(o.slide, o.x, o.y): p for p, o in zip(amibr, amibr.origins, strict=True)}
    breast = [(p, place[o.slide, o.x, o.y]) for p, o in zip(table, table.origins, strict=True) if "breast" in p.tumour]
    assert len(breast) == 1292
    for one, other in breast:
        assert (one.case, one.label, one.domain, one.votes) == (other.case, other.label, other.domain, other.votes)
    assert "'Hamammatsu XR' (358 patches) is read as 'Hamamatsu XR'" in notes(table)
    assert "contradicts the three expert columns in 14 rows" in notes(table)
    assert set(table.column("scanner")) == {"Hamamatsu XR", "Hamamatsu S360", "Aperio CS2"}


def test_label_rows_without_images_are_read(real: Path) -> None:
    table = read_layout([real / "labels" / "MIDOG25_label_rows_without_images.csv"])
    assert len(table) == 9895 and len(set(table.column("case"))) == 399
    votes = Counter(patch.votes for patch in table)
    assert votes["0/2"] == 6300 and votes["2/2"] == 827  # expert3 empty: two agreed
    assert votes["3/5"] + votes["2/5"] == 14
    assert ((table.soft_labels > 0.5) == (table.labels == 1)).all()
    octo = read_layout([real / "labels" / "OMG-Octo_labels_only.csv"])
    assert len(octo) == 1753 and len(set(octo.column("case"))) == 125 and set(octo.column("domain")) == {"OMG-Octo"}
    assert octo.patches[0].patch_id.startswith("OMG-Octo/") and "4 file names are listed more than once" in notes(octo)


# ── small files with the published quirks ─────────────────────────────────────────────────────────────────────────


def test_amibr_split_is_read_not_invented(tmp_path: Path) -> None:
    header = ",slide,dataset,uid,x,y,expert1_label,expert2_label,"
    header += "expert1_atypical,expert2_atypical,expert3_atypical,majority_atypical"
    rows = [f"{i},00{i}.tiff,MIDOG21,{i},1,1,a,b,True,False,,{i == 1}" for i in (1, 2, 3)]
    (tmp_path / "AMI-BR.csv").write_text("\n".join([header, *rows]) + "\n")
    assert set(read_layout([tmp_path]).column("split")) == {"train"}
    (tmp_path / "amibr_train_split.csv").write_text(
        "slide,dataset_uid\n001.tiff,MIDOG21_1.png\n002.tiff,MIDOG21_2.png\n"
    )
    table = read_layout([tmp_path])
    assert table.column("split").tolist() == ["train", "train", "test"]
    assert table.column("path").tolist() == [
        "patches/atypical/MIDOG21_1.png",
        *(f"patches/normal/MIDOG21_{i}.png" for i in (2, 3)),
    ]
    assert table.column("votes").tolist() == ["1/2"] * 3


def test_amibr_images_are_found_in_the_folders_of_the_split(tmp_path: Path) -> None:
    header = "slide,dataset,uid,final_label,dataset_uid,majority_atypical"
    (tmp_path / "amibr_test_split.csv").write_text(f"{header}\n24.tif,TUPAC16,9,Atypical,TUPAC16_9.png,True\n")
    save(tmp_path / "Test" / "Atypical" / "TUPAC16_9.png", 0)
    (patch,) = read_layout([tmp_path / "amibr_test_split.csv"])
    assert (patch.path, patch.split, patch.case) == ("Test/Atypical/TUPAC16_9.png", "test", "TUPAC16/24")


def test_repeated_file_names_are_kept_once_or_left_out(tmp_path: Path) -> None:
    rows = [midog_row("1.png"), midog_row("1.png", x=99), midog_row("2.png"), midog_row("2.png", votes="AMF,AMF,,AMF")]
    rows += [midog_row("3.png"), midog_row("4.png", slide="1.tiff"), midog_row("4.png", slide="2.tiff")]
    table = read_layout([midog_csv(tmp_path, rows)])
    assert table.ids == ("MIDOG25/1", "MIDOG25/3")
    assert "MIDOG25/2: rows 4, 5" in notes(table) and "left out" in notes(table)


def test_images_without_a_row_are_told(tmp_path: Path) -> None:
    path = midog_csv(tmp_path, [midog_row("1.png")])
    for name in ("1.png", "7.png"):
        save(tmp_path / "MIDOG25_Binary_Classification_Train_Set" / name, 1)
    table = read_layout([path])
    assert table.file(table.patches[0]).is_file() and "1 images in MIDOG25_Binary" in notes(table)


def test_images_beside_the_csv_or_in_another_folder_are_found(tmp_path: Path) -> None:
    path = midog_csv(tmp_path / "a", [midog_row("1.png")])
    save(tmp_path / "a" / "anything" / "1.png", 1)
    assert read_layout([path]).patches[0].path == "anything/1.png"
    path = midog_csv(tmp_path / "b", [midog_row("1.png")])
    save(tmp_path / "b" / "1.png", 1)
    assert read_layout([path]).patches[0].path == "1.png"


def test_atnorm_as_csv_and_as_class_folders(tmp_path: Path) -> None:
    path = midog_csv(tmp_path, [midog_row("1.png", slide="002.tiff")], "AtNorM-MD.csv")
    (patch,) = read_layout([path])
    assert (patch.patch_id, patch.case) == ("AtNorM-MD/1", "MIDOG21/002")
    folder = tmp_path / "AtNorM-Br"
    save(folder / "Atypical" / "TCGA-A1-A0SB-01Z_7.png", 1)
    save(folder / "Normal" / "b.png", 2)
    table = read_layout([folder])
    assert table.labels.tolist() == [1, 0]
    assert table.column("case").tolist() == ["TCGA/A1-A0SB", "AtNorM-Br/b"]
    assert set(table.column("domain")) == {"human breast cancer | TCGA"}
    assert "1 patches name no case" in notes(table)


def test_several_data_sets_in_one_folder_must_be_named(tmp_path: Path) -> None:
    for name in ("AtNorM-Br", "AtNorM-MD"):
        for label in ("Atypical", "Normal"):
            save(tmp_path / name / label / "a.png", 1)
    with pytest.raises(DataError, match=r"holds 2 data sets(.|\n)*AtNorM-Br .*AtNorM-MD"):
        read_layout([tmp_path])
    shutil.rmtree(tmp_path / "AtNorM-MD")
    assert read_layout([tmp_path]).ids == ("AtNorM-Br/Atypical/a", "AtNorM-Br/Normal/a")


def test_octo_first_release(tmp_path: Path) -> None:
    (tmp_path / "octo.csv").write_text("image_file,label\n69a_04_x7.png,AMF\nHy9_x1.png,MF\n")
    table = read_layout([tmp_path / "octo.csv"])
    assert table.labels.tolist() == [1, 0] and table.column("case").tolist() == ["OMG-Octo/69a", "OMG-Octo/Hy9"]


# ── plain CSV ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_plain_csv(make: Make) -> None:
    header = "path,label,case,tumor,scanner,lab,votes,mood"
    table = read_layout(
        [
            make(
                [("a/b.png", "AMF", "c1", "liver", "S", "L", "2/3", "x"), ("c.png", "", "", "", "", "", "", "y")],
                header,
            )
        ]
    )
    one, two = table.patches
    assert (one.patch_id, one.label, one.case, one.domain, one.votes) == ("a/b.png", 1, "c1", "liver | S | L", "2/3")
    assert (two.label, two.case) == (None, "c.png")
    assert "mood" in notes(table) and "1 patches name no case" in notes(table)


def test_unknown_labels_are_told_with_their_rows(make: Make) -> None:
    path = make([("a.png", "AMF", "c"), ("b.png", "amitotic", "c"), ("c.png", "2", "c")])
    with pytest.raises(DataError, match="2 rows cannot be read") as caught:
        read_layout([path])
    assert caught.value.details == ("row 3: unknown label 'amitotic'", "row 4: unknown label '2'")


def test_one_path_twice(make: Make) -> None:
    table = read_layout([make([("a.png", 1, "c"), ("a.png", 1, "c"), ("b.png", 0, "c"), ("b.png", 1, "c")])])
    assert table.ids == ("a.png", "b.png")
    (fatal,) = [f for f in table.findings if f.fatal]
    assert fatal.kind == "contradiction" and fatal.details == ("row 5: b.png",)


@pytest.mark.parametrize("text", ["", "\n\n", "path,label\n", "path,label\na.png\n", 'path,label\n"a.png,1\n'])
def test_empty_and_malformed_csv(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=r"t\.csv"):
        read_layout([tmp_path / "t.csv"])


def test_binary_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00path,label")
    with pytest.raises(DataError, match="not a readable CSV"):
        read_layout([tmp_path / "t.csv"])


def test_an_unknown_layout_names_its_columns_and_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image_ids,filename,majorty\na,b,c\n")
    for where in (tmp_path / "t.csv", tmp_path):
        with pytest.raises(
            DataError,
            match=r"columns are image_ids, filename, majorty\n.*nearest is MIDOG25: it lacks image_id, majority",
        ):
            read_layout([where])


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_layout([tmp_path / "nothing"])
    with pytest.raises(DataError, match="no layout that is known"):
        read_layout([tmp_path])


def test_our_own_table_reads_back_and_two_sets_with_equal_names_stay_apart(make: Make, tmp_path: Path) -> None:
    one, two = make([("a.png", 1, "c1")], folder="one"), make([("a.png", 0, "")], folder="two")
    both = read_layout([one, two])
    assert both.ids == ("a.png", "two/a.png") and both.patches[1].case == "two/a.png"
    assert [both.file(p) for p in both] == [one.parent / "a.png", two.parent / "a.png"]
    again = read_layout([both.write(tmp_path / "deep" / "er" / "patches.csv")])
    assert [(p.patch_id, p.label, again.file(p)) for p in again] == [(p.patch_id, p.label, both.file(p)) for p in both]


def test_a_folder_of_images(tmp_path: Path) -> None:
    for name in ("b.png", "a/c.png"):
        save(tmp_path / name, 0)
    table = read_images(tmp_path)
    assert table.ids == ("a/c.png", "b.png") and table.labels.tolist() == [-1, -1]
    with pytest.raises(DataError, match="holds no images"):
        (tmp_path / "none").mkdir()
        read_images(tmp_path / "none")


@pytest.mark.parametrize(
    "counts, meant",
    [
        ({"Hamammatsu XR": 9, "Hamamatsu XR": 1}, {"Hamammatsu XR": "Hamamatsu XR"}),
        ({"Hamammatsu XR": 9}, {"Hamammatsu XR": "Hamamatsu XR"}),
        ({"aperio-cs2": 1, "Aperio CS2": 5}, {"aperio-cs2": "Aperio CS2"}),
        ({"3D Histech": 5, "3DHistech": 1, "3D Hystech": 1}, {"3DHistech": "3D Histech"}),
        ({"Hamamatsu S360": 1, "Hamamatsu S60": 1, "Hamamatsu XR": 1, "Aperio CS2": 1, "Aperio CS": 1}, {}),
        ({"Scanner A": 1, "Scanner B": 1}, {}),
    ],
)
def test_spellings_of_one_scanner(counts: dict[str, int], meant: dict[str, str]) -> None:
    assert same_scanners(counts) == meant


def test_a_spelling_is_unified_in_scanner_and_domain(make: Make) -> None:
    rows = [("a.png", 1, "c", "Hamamatsu XR"), ("b.png", 0, "d", "hamamatsu-xr"), ("c.png", 0, "e", "Hamamatsu XR")]
    table = read_layout([make(rows, "path,label,case,scanner")])
    assert set(table.column("scanner")) == {"Hamamatsu XR"} == set(table.column("domain"))


def test_the_csv_module_and_the_reader_agree_on_the_real_rows(real: Path) -> None:
    with (real / "amibr" / "AMI-BR.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = read_layout([real / "amibr"])
    assert [row["majority_atypical"] == "True" for row in rows] == [p.label == 1 for p in table]
    assert [f"AMi-Br/{row['dataset']}_{row['uid']}" for row in rows] == list(table.ids)
