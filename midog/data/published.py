"""Readers of the published layouts: AMi-Br, MIDOG25, AtNorM-MD, AtNorM-Br and OMG-Octo.

What each was held against:
- AMi-Br: real files, both its CSV (`AMI-BR.csv`, `patches/{atypical,normal}/<dataset>_<uid>.png`) and the CSV of its
  published split (`amibr_train_split.csv`); the folders of that split (`Train|Test/{Atypical,Normal}`) only as the
  benchmark's public training scripts name them.
- MIDOG25: real files. OMG-Octo: its real label file in MIDOG25's columns; the columns of its first release
  (`image_file,label`) only as public code names them.
- AtNorM-Br, AtNorM-MD: class folders `{Atypical,Normal}` as the benchmark's public scripts name them; not seen.
  A CSV with MIDOG25's columns is read too. File names that begin with a TCGA barcode or a MIDOG++ slide number give
  the case, others make each patch a case of its own, with a note.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from midog import files
from midog.data.drafts import (
    IMAGES,
    Draft,
    domain_of,
    images_below,
    locate,
    make_origin,
    note_contrary,
    note_unlisted,
    slide_case,
    tally_votes,
    without_repeats,
)
from midog.data.patches import Origin, Patch, PatchTable

CLASS_WORDS = {"atypical": 1, "amf": 1, "normal": 0, "nmf": 0}


# ── AMi-Br ────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_amibr(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> PatchTable:
    """AMi-Br's CSV, or that of its published split. Label: the majority column. Case: slide of MIDOG21 or TUPAC16."""
    draft = Draft(path, "AMi-Br", path.absolute().parent)
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    names = [f"{cell['dataset']}_{cell['uid']}.png" for cell in cells]
    split = _amibr_split(path)
    place = _amibr_place(path.parent, cells, names)
    contrary = 0
    for number, (cell, name) in enumerate(zip(cells, names, strict=True), 2):
        label = draft.label(cell["majority_atypical"], number)
        votes = [
            v for v in (draft.label(cell.get(f"expert{i}_atypical", ""), number) for i in (1, 2, 3)) if v is not None
        ]
        case, scanner, laboratory = _amibr_slide(cell["dataset"], cell["slide"])
        tally, odd = tally_votes(votes, label)
        contrary += odd
        patch = Patch(
            f"AMi-Br/{Path(name).stem}",
            place(cell, name),
            label,
            case,
            domain_of("human breast cancer", scanner, laboratory),
            split(name),
            None,
            "human breast cancer",
            scanner,
            laboratory,
            "human",
            tally,
        )
        draft.rows.append((patch, make_origin(path, number, case, cell.get("x", ""), cell.get("y", ""))))
    note_contrary(draft, contrary)
    return without_repeats(draft).table()


def _amibr_slide(dataset: str, slide: str) -> tuple[str, str, str]:
    """(case, scanner, laboratory) by slide number, as the two challenges describe their slides."""
    digits = re.match(r"\d+", slide)
    if not digits or dataset not in ("MIDOG21", "TUPAC16"):
        return f"{dataset}/{Path(slide).stem}", "", ""
    number = int(digits[0])
    if dataset == "MIDOG21":
        scanners = ("Hamamatsu XR", "Hamamatsu S360", "Aperio CS2", "Leica GT450")
        return f"MIDOG21/{number:03d}", scanners[min((number - 1) // 50, 3)], "UMC Utrecht"
    if number <= 23:
        return f"TUPAC16/{number:02d}", "Aperio ScanScope XT", "UMC Utrecht"
    return f"TUPAC16/{number:02d}", "Leica SCN400", f"TUPAC16 centre {2 if number <= 48 else 3}"


def _amibr_split(path: Path) -> Callable[[str], str]:
    """Split of a file name by the published split's own CSV files, where they lie beside; else all is train."""
    if "test_split" in path.stem:
        return lambda name: "test"
    listed: dict[str, set[str]] = {}
    for split in ("train", "test"):
        beside = path.with_name(f"amibr_{split}_split.csv")
        if beside.is_file():
            header, rows = files.read_csv(beside)
            if "dataset_uid" in header:
                listed[split] = {row[header.index("dataset_uid")] for row in rows}
    if "test" in listed:
        return lambda name: "test" if name in listed["test"] else "train"
    if "train" in listed:
        return lambda name: "train" if name in listed["train"] else "test"
    return lambda name: "train"


def _amibr_place(
    folder: Path, cells: Sequence[dict[str, str]], names: Sequence[str]
) -> Callable[[dict[str, str], str], str]:
    """Where the image of a row lies: as published, else wherever below the folder a file of that name is."""

    def usual(cell: dict[str, str], name: str) -> str:
        return f"patches/{'atypical' if cell['majority_atypical'].lower() in ('true', '1') else 'normal'}/{name}"

    sample = list(zip(cells, names, strict=True))[:50]
    if any((folder / usual(cell, name)).is_file() for cell, name in sample):
        return usual
    found = {name: place for place, name in images_below(folder)}
    return lambda cell, name: found.get(name, usual(cell, name))


# ── MIDOG25, AtNorM as CSV, OMG-Octo ──────────────────────────────────────────────────────────────────────────────


def read_image_ids(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> PatchTable:
    """A CSV in MIDOG25's columns: `image_id,filename,…,majority`. Label: the majority column. Case: the slide.

    The data set is told by the CSV's or its folder's name; a file without coordinates is OMG-Octo's.
    """
    named = dataset_name(path.stem) or dataset_name(path.absolute().parent.name)
    dataset = named or ("MIDOG25" if "coordinateX" in header else "OMG-Octo")
    draft = Draft(path, dataset, path.absolute().parent)
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    usual = ("MIDOG25_Binary_Classification_Train_Set",) if dataset == "MIDOG25" else ()
    folder = locate(draft.root, [cell["image_id"] for cell in cells], usual)
    contrary = 0
    for number, cell in enumerate(cells, 2):
        label = draft.label(cell["majority"], number)
        votes = [v for v in (draft.label(cell.get(f"expert{i}", ""), number) for i in (1, 2, 3)) if v is not None]
        tally, odd = tally_votes(votes, label)
        contrary += odd
        tumour = cell.get("Tumor", "").replace("tumor", "tumour") or _tumour(dataset)
        scanner, laboratory = cell.get("Scanner", ""), cell.get("Origin", "")
        case = _tcga(cell["filename"]) or (f"OMG-Octo/{cell['filename']}" if dataset == "OMG-Octo" else "")
        case = case or slide_case(cell["filename"])
        patch = Patch(
            f"{dataset}/{Path(cell['image_id']).stem}",
            os.path.normpath(f"{folder}/{cell['image_id']}"),
            label,
            case,
            domain_of(tumour, scanner, laboratory) or dataset,
            "train",
            None,
            tumour,
            scanner,
            laboratory,
            cell.get("Species", "").lower(),
            tally,
        )
        place = (cell.get("coordinateX", ""), cell.get("coordinateY", ""))
        draft.rows.append((patch, make_origin(path, number, case, *place)))
    note_contrary(draft, contrary)
    note_unlisted(draft, folder)
    return without_repeats(draft).table()


def read_octo(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> PatchTable:
    """OMG-Octo's first release: `image_file,label` with MF or AMF; the slide is the file name up to its first `_`."""
    words = {"mf": "NMF"}
    renamed = []
    for row in rows:
        cell = dict(zip(header, row, strict=True))
        label = words.get(cell["label"].lower(), cell["label"])
        renamed.append((cell["image_file"], cell["image_file"].split("_", 1)[0], label))
    return read_image_ids(path, ("image_id", "filename", "majority"), renamed)


def dataset_name(words: str) -> str:
    """The published data set that a file or folder name speaks of, or ""."""
    plain = re.sub(r"[^a-z0-9]", "", words.lower())
    known = {
        "atnormmd": "AtNorM-MD",
        "atnormbr": "AtNorM-Br",
        "omgocto": "OMG-Octo",
        "midog25": "MIDOG25",
        "amibr": "AMi-Br",
    }
    return next((name for key, name in known.items() if key in plain), "")


def _tumour(dataset: str) -> str:
    return "human breast cancer" if dataset in ("AtNorM-Br", "AMi-Br") else ""


def _tcga(name: str) -> str:
    """Patient of a TCGA barcode at the beginning of a name, "TCGA/A1-A0SB", or ""."""
    found = re.match(r"TCGA-(\w{2}-\w{4})", name, re.IGNORECASE)
    return f"TCGA/{found[1].upper()}" if found else ""


# ── class folders: AtNorM-Br, AtNorM-MD, AMi-Br's published split ────────────────────────────────────────────────


def class_folders(folder: Path) -> list[tuple[str, int, str]]:
    """(relative folder, label, split) of each class folder: `Atypical`, `Normal`, or below `Train` and `Test`."""
    found = []
    for top in [folder, *sorted(p for p in folder.iterdir() if p.is_dir() and p.name.lower() in ("train", "test"))]:
        split = "test" if top is not folder and top.name.lower() == "test" else "train"
        for entry in sorted(top.iterdir()):
            label = CLASS_WORDS.get(entry.name.lower())
            if label is not None and entry.is_dir():
                found.append((entry.relative_to(folder).as_posix(), label, split))
    return found


def read_class_folders(folder: Path) -> PatchTable:
    """A folder with `Atypical` and `Normal` (also below `Train` and `Test`, the published split) full of images."""
    dataset = dataset_name(folder.absolute().name) or folder.absolute().name
    draft = Draft(folder, dataset, folder.absolute())
    found = [
        (place, label, split, file)
        for place, label, split in class_folders(folder)
        for file in sorted((folder / place).iterdir())
        if file.suffix.lower() in IMAGES
    ]
    stems = Counter(file.stem for *_, file in found)
    for place, label, split, file in found:
        # One name in both class folders is two files: whether they are one image is for the check of the pixels.
        patch_id = f"{dataset}/{file.stem}" if stems[file.stem] == 1 else f"{dataset}/{place}/{file.stem}"
        slide = re.match(r"\d{3}(?=[_.\- ])", file.name)
        case = _tcga(file.name) or (slide_case(slide[0]) if slide and dataset == "AtNorM-MD" else patch_id)
        tumour, laboratory = _tumour(dataset), "TCGA" if dataset == "AtNorM-Br" else ""
        domain = domain_of(tumour, "", laboratory) or dataset
        patch = Patch(patch_id, f"{place}/{file.name}", label, case, domain, split, None, tumour, "", laboratory)
        draft.rows.append((patch, Origin(patch.path, 0)))
    return draft.table()
