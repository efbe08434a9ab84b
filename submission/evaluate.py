"""The challenge's evaluation, done locally: the official verdicts and scores, and what the official one overlooks.

The official evaluator stops at the first flaw; this one lists all flaws and still scores the valid rest, marked
unofficial. Source of the rules: public behaviour of the challenge's evaluation container.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.errors import DataError, nearest, unknown
from midog.files import read_csv, read_json, sha256_file
from submission.answers import official_problems, own_problems
from submission.challenge import TRACK2, plain
from submission.scoring import Evaluation, Pages, Problem, evaluate_pages, join_pages, natural_order

if TYPE_CHECKING:
    from midog.data.patches import PatchTable

GROUND_TRUTH_FILE = "ground_truth.json"
TABLE_COLUMNS = ("patch_id", TRACK2.class_key, TRACK2.confidence_key)
GROUPS = ("domain", "tumour", "scanner", "laboratory")


def evaluate_folder(folder: Path | str, truth: Path | str | None = None, draws: int = 1000) -> Evaluation:
    """Score a folder as the platform hands it to the evaluator.

    Args:
        folder: holds predictions.json and, per job, `<pk>/output/<relative_path of the output>`.
        truth: ground_truth.json, or the folder that holds it; by default `folder`.

    Raises: DataError for a missing or unreadable listing; ContractError when no page can be scored.
    """
    folder = Path(folder)
    target = Path(truth) if truth is not None else folder
    if target.is_dir():
        target = target / GROUND_TRUTH_FILE
    problems: list[Problem] = []
    known = _read_truth(target, problems)
    listing = folder / TRACK2.predictions_file
    parts: list[Pages] = []
    jobs: list[dict[str, Any]] = []
    done: set[str] = set()
    for number, job in enumerate(_read_list(listing)):
        name, content = _read_output(folder, number, job, problems)
        keys = ("pk", "status", "exec_duration", "invoke_duration")
        jobs.append({"image": name, **({key: job.get(key) for key in keys} if isinstance(job, dict) else {})})
        if name is None:
            continue
        if name not in known:
            guess = nearest(name, known)
            hint = f"; did you mean {guess}?" if guess else ""
            problems.append(Problem(plain(name), f"is not in {target.name}{hint}"))
        elif name in done:
            problems.append(Problem(plain(name), "has two jobs; the first is scored here, both there", fatal=False))
        else:
            done.add(name)
            parts += _job_pages(name, content, known[name], problems)
    missing = sorted(set(known) - done, key=natural_order)
    problems += [Problem(plain(name), "has a ground truth but no prediction", fatal=False) for name in missing]
    return evaluate_pages(join_pages(parts), problems, draws=draws, jobs=jobs)


def _read_list(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no such file: {path}", "give the folder the platform hands to the evaluator") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, list) or not content:
        raise DataError(f"{path} holds no list of entries")
    return content


def _read_truth(path: Path, problems: list[Problem]) -> dict[str, tuple[list[str], list[Any]]]:
    """Labels and domains by image name; flawed entries are reported and left out."""
    known: dict[str, tuple[list[str], list[Any]]] = {}
    for number, entry in enumerate(_read_list(path)):
        where = f"{path.name} entry {number}"
        image, labels, domains = (
            (entry.get(key) for key in ("image", "labels", "tumordomains"))
            if isinstance(entry, dict)
            else (None, None, None)
        )
        if not isinstance(image, str) or not isinstance(labels, list) or not isinstance(domains, list):
            problems.append(Problem(where, "lacks image, labels or tumordomains"))
            continue
        flaws = [] if len(labels) == len(domains) else [f"{len(labels)} labels, {len(domains)} tumordomains"]
        flaws += [
            f"page {page}: label {plain(label)} is not one of {TRACK2.classes}"
            for page, label in enumerate(labels)
            if label not in TRACK2.classes  # it may be anything that JSON holds: no sets
        ]
        problems += [Problem(where, flaw) for flaw in flaws]
        if not flaws:
            if image in known:
                problems.append(Problem(plain(image), "is twice in the ground truth; the last counts", fatal=False))
            known[image] = (labels, domains)
    return known


def _slots(job: dict[str, Any], side: str, slug: str) -> list[tuple[dict[str, Any], bool]]:
    """Items of `side` with our slug, and whether they carry the `interface` key that the official evaluator reads."""
    found = []
    items = job.get(side)
    for item in items if isinstance(items, list) else []:
        if isinstance(item, dict):
            slot = item.get("interface") or item.get("socket")
            if isinstance(slot, dict) and slot.get("slug") == slug:
                found.append((item, isinstance(item.get("interface"), dict)))
    return found


def _read_output(folder: Path, number: int, job: Any, problems: list[Problem]) -> tuple[str | None, Any]:
    """Image name and output content of one job; (None, None) where either cannot be told."""
    where = f"{TRACK2.predictions_file} job {number}"
    if not isinstance(job, dict):
        problems.append(Problem(where, "is no object"))
        return None, None
    inputs = _slots(job, "inputs", TRACK2.input_slug)
    outputs = _slots(job, "outputs", TRACK2.output_slug)
    image = inputs[0][0].get("image") if inputs else None
    name = image.get("name") if isinstance(image, dict) else None
    where = plain(name) if isinstance(name, str) else where
    if job.get("status") != "Succeeded":
        problems.append(Problem(where, f"job status is {plain(job.get('status'))}", fatal=False))
    if not isinstance(name, str) or not outputs:
        problems.append(Problem(where, f"no {TRACK2.input_slug} with a name, or no {TRACK2.output_slug}"))
        return None, None
    if not (inputs[0][1] and outputs[0][1]):
        problems.append(Problem(where, "has socket but no interface, the key the official evaluator reads"))
    slot = outputs[0][0].get("interface") or outputs[0][0]["socket"]
    path = folder / str(job.get("pk")) / "output" / str(slot.get("relative_path") or TRACK2.output_file)
    try:
        return name, json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(Problem(where, f"its output cannot be read: {plain(error)}"))
        return None, None


def _job_pages(name: str, content: Any, truth: tuple[list[str], list[Any]], problems: list[Problem]) -> list[Pages]:
    labels, domains = truth
    refused = official_problems(content, len(labels))
    problems += [Problem(plain(name), text) for text in refused]
    if refused:
        return []
    confidence = np.array([entry[TRACK2.confidence_key] for entry in content], dtype=np.float64)
    # The platform turns NaN and infinities into null, which is refused; off-platform the ROC AUC raises on them.
    finite = bool(np.isfinite(confidence).all())
    problems += [Problem(plain(name), text, fatal=not finite) for text in own_problems(content)]
    if not finite:
        return []
    return [
        Pages(
            np.array([label == TRACK2.atypical for label in labels], dtype=np.int8),
            confidence,
            np.array([entry[TRACK2.class_key] == TRACK2.atypical for entry in content], dtype=np.bool_),
            np.array([str(domain) for domain in domains], dtype=object),
            np.array([name] * len(labels), dtype=object),
        )
    ]


def evaluate_predictions(
    predictions: Path | str,
    truth: Path | str,
    by: str = "domain",
    split: str | None = None,
    bundle: Path | str | None = None,
    draws: int = 1000,
) -> Evaluation:
    """Score a table written by `midog predict` against labelled patches.

    Args:
        predictions: CSV with patch_id, confidence, class (logit is not needed); its sidecar `<predictions>.json`,
            where there is one, tells which patches the bundle was trained on.
        truth: patch table, plain CSV with labels, or a data set folder. Joined by patch_id or alias.
        by: domain, tumour, scanner or laboratory.
        split: score the rows of this split alone ("test"); by default everything, or the one split the predictions
            cover exactly.
        bundle: where there is no sidecar: the bundle whose manifest holds the pixel hashes of its training patches.

    Raises: UsageError for an unknown `by` or split; DataError for a file that is no such table; ContractError when
        nothing can be scored.
    """
    from midog.data.readers import read_layout

    if by not in GROUPS:
        raise unknown("grouping", by, GROUPS)
    problems: list[Problem] = []
    notes: list[str] = []
    answers = _read_table(Path(predictions), problems)
    table = read_layout([Path(truth)])
    table = table.subset(table.labels >= 0)
    names = {alias: row for row, patch in enumerate(table) for alias in patch.aliases}
    names |= {patch.patch_id: row for row, patch in enumerate(table)}
    rows = {name: names[name] for name in answers if name in names}
    wanted = _wanted(table, set(rows.values()), split, notes)
    problems += _join_problems(table, answers, names, wanted)
    kept = {row: answers[name] for name, row in rows.items() if wanted[row]}
    index = np.array(sorted(kept), dtype=np.int64)
    scored = table.subset(index)
    cases, domains = scored.column("case"), scored.column(by)
    pages = Pages(
        scored.labels,
        np.array([kept[row][0] for row in index], dtype=np.float64),
        np.array([kept[row][1] for row in index], dtype=np.bool_),
        np.where(domains == "", "unknown", domains) if (domains != "").any() else domains,
        np.where(cases == "", np.array(scored.ids, dtype=object), cases),
    )
    seen = _seen(Path(predictions), scored, bundle, notes)
    return evaluate_pages(pages, problems, notes, seen, draws=draws)


def _read_table(path: Path, problems: list[Problem]) -> dict[str, tuple[float, bool]]:
    """Confidence and predicted class by patch id; flawed rows are reported and left out."""
    header, rows = read_csv(path)
    absent = [name for name in TABLE_COLUMNS if name not in header]
    if absent:
        raise DataError(
            f"{path} is no prediction table: columns missing: {', '.join(absent)}",
            f"midog predict BUNDLE WHAT -o {path.name} writes one; the order is: midog evaluate PREDICTIONS TRUTH",
        )
    at = [header.index(name) for name in TABLE_COLUMNS]
    found: dict[str, tuple[float, bool]] = {}
    for number, row in enumerate(rows, 2):
        name, word, text = (row[column] for column in at)
        where = f"{path.name} row {number} ({plain(name)})"
        try:
            confidence = float(text)
        except ValueError:
            confidence = float("nan")
        if name in found:
            problems.append(Problem(where, "this patch is predicted twice; the first counts", fatal=False))
        elif word not in TRACK2.classes:
            problems.append(Problem(where, f"class {plain(word)} is not one of {TRACK2.classes}"))
        elif not np.isfinite(confidence):
            problems.append(Problem(where, f"confidence {plain(text)} is no finite number"))
        else:
            found[name] = (confidence, word == TRACK2.atypical)
            if not 0 <= confidence <= 1:
                problems.append(Problem(where, f"confidence {confidence} is not in [0, 1]", fatal=False))
    return found


def _wanted(table: PatchTable, predicted: set[int], split: str | None, notes: list[str]) -> NDArray[np.bool_]:
    """(n,) bool: the labelled patches that a prediction is due for."""
    splits = table.column("split")
    if split is not None:
        if split not in set(splits):
            raise unknown("split", split, {str(name) for name in splits})
        return np.asarray(splits == split)
    for name in sorted(set(splits)) if len(set(splits)) > 1 else []:
        if predicted == set(np.flatnonzero(splits == name).tolist()):
            notes.append(f"the predictions cover split {name}, and that alone is scored")
            return np.asarray(splits == name)
    return np.ones(len(table), dtype=np.bool_)


def _join_problems(
    table: PatchTable, answers: dict[str, Any], names: dict[str, int], wanted: NDArray[np.bool_]
) -> list[Problem]:
    """Predictions without a labelled patch, labelled patches without a prediction, patches under two names."""
    problems: list[Problem] = []
    owner: dict[int, str] = {}
    for name in answers:
        if name not in names:
            guess = nearest(name, names) if len(problems) < 3 else None  # a search through all names, so not for each
            problems.append(Problem(plain(name), f"has no label{f'; did you mean {guess}?' if guess else ''}"))
        elif names[name] in owner:
            other = plain(owner[names[name]])
            problems.append(Problem(plain(name), f"is the same patch as {other}; the last counts", fatal=False))
        else:
            owner[names[name]] = name
    ids = table.ids
    due = [row for row in np.flatnonzero(wanted).tolist() if row not in owner]
    return problems + [Problem(plain(ids[row]), "has a label but no prediction", fatal=False) for row in due]


def _seen(
    predictions: Path, table: PatchTable, bundle: Path | str | None, notes: list[str]
) -> NDArray[np.bool_] | None:
    """(n,) bool: patches the bundle was trained on, or None where that cannot be told."""
    sidecar = predictions.with_name(f"{predictions.name}.json")
    if sidecar.is_file():
        content = read_json(sidecar)
        if content.get("sha256") != sha256_file(predictions):
            notes.append(f"{predictions.name} is not as {sidecar.name} describes it: it was changed after prediction")
        names = set(content.get("seen_in_training", ()))
        return np.array([bool(names & {patch.patch_id, *patch.aliases}) for patch in table], dtype=np.bool_)
    if bundle is not None:
        from midog.bundle import read_manifest
        from midog.data.pixels import open_pixels

        hashes = set(read_manifest(bundle)["training"]["pixels"])
        return np.array([value in hashes for value in open_pixels(table).hashes], dtype=np.bool_)
    notes.append(f"no {sidecar.name}: whether the patches were seen in training is not known")
    return None
