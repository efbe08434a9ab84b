"""The parts of a report, each made from `Findings`; a part that has nothing to show is None."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from midog.report import figures
from midog.report.figures import Dot
from midog.report.findings import FEW, Findings, MemberFacts, ScoreRow
from midog.report.heads import head_section
from midog.report.markup import Drawing, Marked, Section, Value, table_html
from midog.report.mistakes import worst_errors
from midog.report.text import cell_text
from midog.report.thresholds import threshold_section

CHANCE = 0.5
KINDS = ("equal", "tuned", "stack")
PLUMBING = "plumbing, not evidence"
LOSSES = {"bce": "BCE loss", "focal": "focal loss", "domain_focal": "focal loss"}


def all_sections(found: Findings) -> list[Section]:
    """Every part that has something to show, in reading order."""
    makers: tuple[Callable[[Findings], Section | None], ...] = (
        score_section,
        domain_section,
        threshold_section,
        curve_section,
        worst_errors,
        member_section,
        learning_section,
        head_section,
        provenance_section,
    )
    return [section for make in makers if (section := make(found)) is not None]


def score_section(found: Findings) -> Section | None:
    """Members and blends with intervals, in-sample beside cross-fitted."""
    if not found.rows:
        return None
    fitted = any(row.in_sample for row in found.rows)
    ring = " Hollow ring: the same, fitted and scored on the same cases (too good)." if fitted else ""
    drawings = tuple(
        Drawing(
            figures.interval_plot([_dot(row, metric, found) for row in found.rows], words, CHANCE),
            f"{words[0].upper()}{words[1:]}, 95 % case-bootstrap intervals.{ring}",
        )
        for metric, words in (("balanced_accuracy", "balanced accuracy"), ("roc_auc", "AUROC"))
    )
    rows = [_score_line(row, found, fitted) for row in found.rows]
    strong = [at for at, row in enumerate(found.rows) if row.name == found.chosen]
    text = (
        "Each member alone, then the three ways to blend them, then equal weights with each set of views."
        if fitted
        else "Each member on the patches it has scored, and the mean."
    )
    note = ""
    if found.random:
        note = (
            f"{PLUMBING}: {', '.join(found.random)} started from random weights and had no time to learn what "
            f"pretraining gives; chance is balanced accuracy .500 and AUROC .500."
        )
    return Section("Scores", text, drawings, table_html(rows, strong, free=("",)), note)


def _dot(row: ScoreRow, metric: str, found: Findings) -> Dot:
    interval = row.intervals.get(metric)
    low, high = (interval.low, interval.high) if interval else (None, None)
    other = getattr(row.in_sample, metric) if row.in_sample else None
    value = getattr(row.scores, metric)
    return Dot(row.name, value, low, high, other, row.name == found.chosen, row.name in found.random)


def _score_line(row: ScoreRow, found: Findings, fitted: bool) -> dict[str, object]:
    own, seen = row.scores, row.in_sample
    mark = PLUMBING if row.name in found.random else ""
    line: dict[str, object] = {"": Marked(row.name, mark), "balanced accuracy": _value(row, "balanced_accuracy")}
    if fitted:
        line["BA in-sample"] = seen.balanced_accuracy if seen else None
    line |= {"sensitivity": own.sensitivity, "specificity": own.specificity, "AUROC": _value(row, "roc_auc")}
    if fitted:
        line["AUROC in-sample"] = seen.roc_auc if seen else None
    line["log-loss"] = _value(row, "log_loss")
    if fitted:
        line["BA at logit 0"] = row.at_logit_0
    if len({(other.scores.n, other.scores.n_atypical) for other in found.rows}) > 1:
        line |= {"patches": own.n, "atypical": own.n_atypical}
    return line


def _value(row: ScoreRow, metric: str) -> Value:
    interval = row.intervals.get(metric)
    return Value(getattr(row.scores, metric), *((interval.low, interval.high) if interval else (None, None)))


def domain_section(found: Findings) -> Section | None:
    """Scores of the headline predictions per domain."""
    if not found.domains:
        return None
    names, shared = _telling([row.name for row in found.domains])
    rows = [
        {
            "domain": Marked(name, "few" if row.few else ""),
            "patches": row.scores.n,
            "atypical": row.scores.n_atypical,
            "balanced accuracy": _value(row, "balanced_accuracy"),
            "sensitivity": row.scores.sensitivity,
            "specificity": row.scores.specificity,
            "AUROC": _value(row, "roc_auc"),
        }
        for row, name in zip(found.domains, names, strict=True)
    ]
    text = f"Scores of {found.chosen} within each domain, the largest first; few = fewer than {FEW} atypical patches."
    if shared and len(found.domains) > 1:
        text += f" Shared by all: {shared}."
    drawings: tuple[Drawing, ...] = ()
    if len(found.domains) > 1:
        drawings = tuple(
            Drawing(figures.interval_plot(_domain_dots(found, metric), words, CHANCE), caption)
            for metric, words, caption in (
                ("balanced_accuracy", "balanced accuracy", "Balanced accuracy by domain, 95 % intervals. Hollow: few."),
                ("roc_auc", "AUROC", "AUROC by domain: what no choice of threshold can spoil."),
            )
        )
    return Section("By domain", text, drawings, table_html(rows, free=("domain",)))


def _domain_dots(found: Findings, metric: str) -> list[Dot]:
    """All patches, then each domain."""
    names = figures.domain_names([row.name for row in found.domains])
    rows = [replace(row, name=name) for row, name in zip(found.domains, names, strict=True)]
    dots = [replace(_dot(row, metric, found), strong=False, faint=row.few, hollow=row.few) for row in rows]
    if found.row is None:
        return dots
    return [replace(_dot(found.row, metric, found), name="all", other=None), *dots]


def _telling(names: Sequence[str]) -> tuple[list[str], str]:
    """Names such as "breast | XR | Utrecht" without the parts that all of them share, and those parts."""
    parts = [name.split(" | ") for name in names]
    if len(names) < 2 or len({len(part) for part in parts}) != 1:
        return list(names), ""
    differ = [at for at in range(len(parts[0])) if len({part[at] for part in parts}) > 1]
    shared = [word for at, word in enumerate(parts[0]) if at not in differ]
    return [" | ".join(part[at] for at in differ) for part in parts], ", ".join(shared)


def curve_section(found: Findings) -> Section | None:
    """ROC, reliability and threshold."""
    predictions, row = found.predictions, found.row
    if predictions is None or row is None or not 0 < row.scores.n_atypical < row.scores.n:
        return None
    y, p = predictions.labels, predictions.confidence
    others = {m.name: m.logits for m in found.members if m.logits is not None}
    own = row.scores
    point = None
    if own.sensitivity is not None and own.specificity is not None:
        point = (1 - own.specificity, own.sensitivity)
    fitted = found.kind == "blend"
    word = "chosen" if fitted else "logit 0 ="
    drawings = (
        Drawing(
            figures.roc(y, p, found.chosen, others if len(others) > 1 else None, point),
            "ROC. The dot is where the classes lie that these scores count.",
        ),
        Drawing(
            figures.reliability(y, p),
            "Reliability: dots on the diagonal mean that a confidence of .7 is atypical in 7 of 10 cases. "
            "Bars are 95 % Wilson intervals."
            + ("" if fitted else " Not calibrated yet: that is the blend's work."),
        ),
        Drawing(
            figures.threshold_curve(y, p, predictions.threshold, predictions.smooth, word),
            "Balanced accuracy against threshold"
            + (", raw (thin) and smoothed (bold). Smoothing lowers the curve; where its top lies is what counts. The "
               "threshold ships with the blend; the scores used ones fitted without the cases they score."
               if fitted else ", raw (thin) and smoothed (bold); a blend will choose it."),
        ),
    )  # fmt: skip
    return Section("How it decides", "", drawings)


def member_section(found: Findings) -> Section | None:
    """Weights and correlation."""
    drawings: list[Drawing] = []
    names = [member.name for member in found.members]
    text = ""
    values = found.weights.get(found.chosen)
    if values and len(values) > 1:
        fits = [[fit.get(name, np.nan) for name in values] for fit in found.weight_fits]
        drawing = figures.weights(list(values), list(values.values()), fits or None)
        drawings.append(Drawing(drawing, "Weight of each member. Ticks: found without each fifth of the cases."))
    if found.strength is not None and found.chosen == "tuned" and len(names) > 1:
        text = (
            f"Tuned weights were pulled towards equal ones with strength {cell_text(float(found.strength))} "
            "(0 keeps equal weights, 1 the tuned ones), chosen on cases that did not tune them."
        )
    with_logits = [member for member in found.members if member.logits is not None]
    if len(with_logits) > 1:
        matrix = _correlation(with_logits)
        drawing = figures.correlation([member.name for member in with_logits], matrix)
        caption = "Pearson correlation of out-of-fold logits. Members that differ have more to give each other."
        drawings.append(Drawing(drawing, caption, wide=len(with_logits) > 7))
    rows = [
        {
            "member": Marked(member.name, PLUMBING if member.random else ""),
            "backbone": member.backbone or "–",
            "starts from": member.starts_from,
            **{kind: found.weights.get(kind, {}).get(member.name) for kind in KINDS if found.weights},
        }
        for member in found.members
    ]
    return Section("Members", text, tuple(drawings), table_html(rows)) if rows else None


def _correlation(members: list[MemberFacts]) -> np.ndarray:
    stacked = np.stack([member.logits for member in members if member.logits is not None])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.corrcoef(stacked), dtype=np.float64)


def learning_section(found: Findings) -> Section | None:
    """Loss per epoch by member and fold; members with the same loss share their scale."""
    drawings = []
    for member in found.members:
        curves = [(fold.epochs, fold.loss) for fold in member.folds if len(fold.loss)]
        if curves:
            drawing = figures.learning_curve(
                member.name, curves, member.epochs, _top(found, member.loss), LOSSES.get(member.loss, member.loss)
            )
            drawings.append(Drawing(drawing, _fold_states(member)))
    failures = [
        f"- {member.name}, fold {fold.name}: {fold.problem.splitlines()[0] if fold.problem else 'failed'}"
        for member in found.members
        for fold in member.folds
        if fold.state == "failed"
    ]
    if not drawings and not failures:
        return None
    text = "Training loss per epoch, a line for each fold. It says whether training went well, not how good a model is."
    if failures:
        text += "\n\nFailed:\n\n" + "\n".join(failures)
    return Section("Learning curves", text, tuple(drawings), small=True)


def _top(found: Findings, loss: str) -> float:
    """Upper limit of a loss axis: the largest loss, rounded up to two digits."""
    values = [fold.loss.max() for m in found.members if m.loss == loss for fold in m.folds if len(fold.loss)]
    top = float(max(values))
    step = 10 ** (np.floor(np.log10(top)) - 1) if top > 0 else 1.0
    return float(np.ceil(top / step) * step) if top > 0 else 1.0


def _fold_states(member: MemberFacts) -> str:
    states = [fold.state for fold in member.folds]
    counted = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    return f"{member.epochs} epochs, folds: {', '.join(counted)}"


def provenance_section(found: Findings) -> Section | None:
    """Seeds, versions, commit, hashes, threads, device."""
    if not found.provenance:
        return None
    rows = [{"": name, " ": value} for name, value in found.provenance]
    return Section("Provenance", "", html=table_html(rows, free=(" ",)))
