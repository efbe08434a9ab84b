"""The model card of a blend, in Markdown: what it is for, what it learned from, how good it is and where it is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.blend import Blend, BlendMember, OperatingPoint, read_blend
from ensemble.predictions import EVERYTHING, Scored, read_scored
from ensemble.result import OOF_BLEND_FILE, OOF_FAST_FILE, run_names
from midog.data.download import SOURCES
from midog.errors import DataError
from midog.metrics import bootstrap_by_case, scores
from midog.packing import trained_on
from midog.report.findings import FEW, provenance_rows
from midog.report.from_blend import member_starts_from, weights_source
from midog.report.text import cell_text

METRICS = {
    "balanced_accuracy": "BA",
    "roc_auc": "AUROC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "log_loss": "log-loss",
}
DATA = {
    "AMi-Br": ("MIT", f"{SOURCES['amibr'].citation}; {SOURCES['atnorm'].citation}"),
    "MIDOG25": ("", "the MIDOG 2025 challenge's classification set, Zenodo 16044804"),
    "AtNorM-Br": ("", SOURCES["atnorm"].citation),
    "AtNorM-MD": ("", SOURCES["atnorm"].citation),
}
"""Licence and citation of the data sets by the first part of a patch's id; "" where it is not recorded here."""
INTENDED = """\
**Meant for** research on mitotic figures, above all MIDOG 2025 Track 2: is the mitotic figure at the centre of an H&E
patch (128 × 128 pixels at about 0.25 µm per pixel) atypical or normal? Atypical is the positive class; `confidence` is
its calibrated probability, and the class is atypical from the operating point's threshold on.

**Not meant for** diagnosis, prognosis or any decision on a patient: it is not a medical device and was never validated
as one. It does not detect mitotic figures; what is no mitotic figure gets an answer all the same."""
CROSS_FITTED = (
    "Cross-fitted by case: every patch is scored by a fold model that never saw its case, with weights, shift, "
    "temperature and threshold fitted on other cases. In brackets 95 % intervals of the case bootstrap."
)


def model_card(blend: Path | str) -> str:
    """The card of a blend folder (or its blend.json). No time and no path: equal blends give equal cards.

    Raises: DataError when the folder is no blend, or lacks its cross-fitted predictions.
    """
    folder = Path(blend) if Path(blend).is_dir() else Path(blend).parent
    read = read_blend(blend)
    if not (folder / OOF_BLEND_FILE).is_file():
        problem = f"{folder} holds no {OOF_BLEND_FILE}, the cross-fitted predictions"
        raise DataError(problem, f"midog blend RUN -o {folder}")
    full = read_scored(folder / OOF_BLEND_FILE)
    fast = read_scored(folder / OOF_FAST_FILE) if (folder / OOF_FAST_FILE).is_file() else None
    parts = ["# Model card", _what(read), INTENDED, "## Data", *_data(full), "## Members", *_members(read)]
    parts += ["## Scores", CROSS_FITTED, *_scores("full", read, full)]
    if fast is not None:
        parts += [
            *_scores("fast", read, fast),
            "Which members are the best was found anew without each part of the cases.",
        ]
    parts += ["## Operating points", *_points(read), "## Limits", _limits(read, full)]
    parts += ["## Licences and citations", _licences(read, full), "## Provenance", _provenance(read)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(blend: Blend) -> str:
    settings, point = blend.content.get("settings", {}), blend.point()
    models = sum(len(blend.member(name).folds) for name in point.members)
    return (
        f"An ensemble of {_count(len(point.members), 'member')} and {_count(models, 'fold model')} that tells atypical "
        f"from normal mitotic figures. Blend: {settings.get('kind', 'unknown')} weights, views `{point.views}`, "
        f"threshold rule `{settings.get('threshold', 'unknown')}`."
    )


# ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _data(scored: Scored) -> Iterator[str]:
    table = scored.table
    sets = _sets(scored)
    rows = []
    for name in [*dict.fromkeys(sorted(sets.tolist())), EVERYTHING]:
        among = np.ones(len(table), dtype=np.bool_) if name == EVERYTHING else sets == name
        cases = len(set(table.column("case")[among]))
        rows.append([name, str(among.sum()), str(cases), str(int(table.labels[among].sum()))])
    yield "What it was trained and scored on, by the first part of the patch ids."
    yield _table(["data set", "patches", "cases", "atypical"], rows)


def _sets(scored: Scored) -> Any:
    return np.array([patch_id.partition("/")[0] for patch_id in scored.table.ids], dtype=object)


# ── members and operating points ──────────────────────────────────────────────────────────────────────────────────


def _members(blend: Blend) -> Iterator[str]:
    full = blend.point()
    weights = dict(zip(full.members, full.weights, strict=True))
    whole = sum(map(abs, weights.values())) or 1.0
    rows = []
    for member in blend.members:
        start, tune = member_starts_from(blend, member), str(member.network.get("tune", {}).get("kind", "–"))
        weight = weights.get(member.name, 0.0)
        share, size = f"{abs(weight) / whole:.0%}", _size(member)
        models = f"{len(member.folds)} of {_folds(blend, member)}"
        rows.append([member.name, _backbone(member), start, tune, cell_text(weight), share, models, size])
    header = ["member", "backbone", "starts from", "tuned", "weight", "share", "fold models", "MB of them"]
    yield _table(header, rows)
    yield "A member's logit is the mean of its fold models; what they share of a frozen backbone is stored once."


def _folds(blend: Blend, member: BlendMember) -> str:
    """How many folds were trained: the run's own word, else what the blend holds."""
    names = run_names(other.run for other in blend.members if other.run)
    name = names.get(Path(member.run).resolve(), "")
    manifest = blend.content.get("provenance", {}).get("runs", {}).get(name, {})
    return str(len(manifest.get("fold_names", member.folds)))


def _backbone(member: BlendMember) -> str:
    record = member.network.get("backbone", {})
    return str(record.get("name", "")) if isinstance(record, Mapping) else str(record)


def _size(member: BlendMember) -> str:
    files = [Path(fold["path"]) for fold in member.folds.values()]
    there = all(file.is_file() for file in files)
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f}" if there else "–"


def _points(blend: Blend) -> Iterator[str]:
    shown = [point for name, point in blend.points.items() if not name.endswith("/1") or name == "full/1"]
    rows = []
    for point in shown:
        found = blend.content["points"][point.name].get("cross_fitted", {})
        rows.append(
            [
                f"`{point.name}`",
                ", ".join(point.members),
                point.views,
                _answering(point, blend),
                cell_text(point.threshold),
                cell_text(found.get("balanced_accuracy")),
                cell_text(found.get("roc_auc")),
            ]
        )
    yield _table(["point", "members", "views", "fold models", "threshold", "BA", "AUROC"], rows)
    yield (
        "Each has its own shift, temperature and threshold, and each but `fast` also exists with one view (`…/1`). "
        "Scores are cross-fitted, of single fold models; points that use several of them answer with the mean."
    )


def _answering(point: OperatingPoint, blend: Blend) -> str:
    counts = [len(blend.member(name).folds) for name in point.members]
    return str(sum(min(count, point.fold_models or count) for count in counts))


# ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _scores(name: str, blend: Blend, scored: Scored) -> list[str]:
    """Overall, by scanner and by tumour, and the worst domain."""
    point = blend.point(name)
    about = f"{', '.join(point.members)}; views `{point.views}`; fold models: {_answering(point, blend)}"
    groups = {EVERYTHING: np.ones(len(scored.table), dtype=np.bool_)}
    for by in ("scanner", "tumour"):
        words = scored.groups(by).astype(str)
        groups |= {f"{by}: {word}": words == word for word in np.unique(words)}
    rows = [_score_row(title, scored, among) for title, among in groups.items()]
    header = ["", "patches", "atypical", *METRICS.values()]
    return [f"### `{name}`", f"{about}.", _table(header, rows), _worst(scored)]


def _score_row(title: str, scored: Scored, among: Any) -> list[str]:
    y, p, called = scored.table.labels[among], scored.confidence[among], scored.predicted[among]
    found = scores(y, p, called)
    intervals = bootstrap_by_case(y, p, called, scored.table.column("case")[among], tuple(METRICS))
    cells = []
    for metric in METRICS:
        interval = intervals.get(metric)
        spread = "" if interval is None else f" ({cell_text((interval.low, interval.high))})"
        cells.append(cell_text(getattr(found, metric)) + spread)
    return [title, str(found.n), str(found.n_atypical), *cells]


def _worst(scored: Scored) -> str:
    """The domain with the lowest balanced accuracy among those with enough atypical patches to say."""
    words = scored.groups("domain").astype(str)
    known = []
    for word in np.unique(words):
        among = words == word
        found = scores(scored.table.labels[among], scored.confidence[among], scored.predicted[among])
        if found.n_atypical >= FEW and found.balanced_accuracy is not None:
            known.append((found.balanced_accuracy, str(word), found.n_atypical))
    if len(known) < 2:
        return f"Fewer than two domains have {FEW} atypical patches: no worst one is named."
    value, word, n = min(known)
    return (
        f"Worst of the {len(known)} domains with at least {FEW} atypical patches: {word} ({n}), BA {cell_text(value)}."
    )


# ── limits, licences, provenance ──────────────────────────────────────────────────────────────────────────────────


def _limits(blend: Blend, scored: Scored) -> str:
    def words(by: str) -> str:
        return ", ".join(sorted(set(scored.groups(by).astype(str))))

    lines = [
        f"Scanners of its training: {words('scanner')}. Tumours: {words('tumour')}. Anything else is new to it.",
        "The scores are of domains that training has seen. " + _unseen(blend),
        "They are of single fold models; means of several answer, which only held-out cases can measure.",
        "Labels are experts' opinions; two of them agree with κ .61 on the challenge's test.",
        f"A confidence is a probability where {blend.prevalence:.0%} are atypical, as in training, and not elsewhere.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _unseen(blend: Blend) -> str:
    found = blend.content.get("thresholds", {})
    rule = blend.content.get("settings", {}).get("threshold", "pooled")
    cost = found.get("worst", {}).get("left_out", {}).get(rule)
    if cost is None:
        return str(found.get("how", "")) if "domains" not in found else ""
    mean = found["mean"]["left_out"][rule]["regret"]
    return (
        f"With a threshold that never saw the domain, the loss against its own best one is {cell_text(mean)} of "
        f"balanced accuracy on average and {cell_text(cost['regret'])} at worst."
    )


def _licences(blend: Blend, scored: Scored) -> str:
    lines = []
    for name in dict.fromkeys(sorted(_sets(scored).tolist())):
        licence, citation = DATA.get(name, ("", ""))
        said = f"licence {licence}" if licence else "licence not recorded here, see its source"
        lines.append(f"{name}: {said}" + (f"; cite {citation}" if citation else ""))
    for member in blend.members:
        record = member.network.get("backbone", {})
        if member.network.get("pretrained") == "record" and isinstance(record, Mapping):
            licence = str(record.get("licence", "unknown"))
            lines.append(f"weights of {_backbone(member)}: {weights_source(record)}, licence {licence}")
    lines.append("method: arXiv 2509.02591; this package: MIT")
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines))


def _provenance(blend: Blend) -> str:
    content, settings = blend.content, blend.content.get("settings", {})
    own = dict(content.get("provenance", {}))
    runs = own.pop("runs", {})
    told = {"blend": {**content, **own, "seed": settings.get("seed")}}
    told |= {f"run {name}": manifest for name, manifest in runs.items()}
    told |= {f"fold models {', '.join(of['fold_models'])}": of for of in trained_on(blend.members)}
    facts = {
        name: ", ".join(f"{key} {value}" for key, value in provenance_rows(of) if key != "platform")
        for name, of in told.items()
    }
    return "\n".join(f"- {name}: {words or 'not recorded'}" for name, words in facts.items())


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
