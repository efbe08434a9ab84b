"""The parts of a report, each made from `Findings`; a part that has nothing to show is None."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from midog.report import figures
from midog.report.figures import Dot
from midog.report.findings import FEW, Findings, MemberFacts, ScoreRow
from midog.report.markup import Drawing, Marked, Section, Value, table_html
from midog.report.mistakes import worst_errors
from midog.report.text import cell_text

CHANCE = 0.5
KINDS = ("equal", "tuned", "stack")
PLUMBING = "plumbing, not evidence"
LOSSES = {"bce": "BCE loss", "focal": "focal loss", "domain_focal": "focal loss"}


def all_sections(found: Findings) -> list[Section]:
    """Every part that has something to show, in reading order."""
    makers: tuple[Callable[[Findings], Section | None], ...] = (
        score_section,
        domain_section,
        curve_section,
        worst_errors,
        member_section,
        learning_section,
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
            f"{words.capitalize()}, 95 % case-bootstrap intervals.{ring}",
        )
        for metric, words in (("balanced_accuracy", "balanced accuracy"), ("roc_auc", "AUROC"))
    )
    rows = [_score_line(row, found, fitted) for row in found.rows]
    strong = [at for at, row in enumerate(found.rows) if row.name == found.chosen]
    note = ""
    if found.random:
        note = (
            f"{PLUMBING}: {', '.join(found.random)} started from random weights and had no time to learn what "
            f"pretraining gives; chance is balanced accuracy .500 and AUROC .500."
        )
    return Section("Scores", found.how_scored, drawings, table_html(rows, strong), note)


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
        line["in-sample"] = seen.balanced_accuracy if seen else None
    line |= {"sensitivity": own.sensitivity, "specificity": own.specificity, "AUROC": _value(row, "roc_auc")}
    if fitted:
        line["AUROC in-sample"] = seen.roc_auc if seen else None
    line["log-loss"] = _value(row, "log_loss")
    if fitted:
        line["at logit 0"] = row.at_logit_0
    return line | {"patches": own.n, "atypical": own.n_atypical}


def _value(row: ScoreRow, metric: str) -> Value:
    interval = row.intervals.get(metric)
    return Value(getattr(row.scores, metric), *((interval.low, interval.high) if interval else (None, None)))


def domain_section(found: Findings) -> Section | None:
    """Scores of the headline predictions per domain."""
    if not found.domains:
        return None
    rows = [
        {
            "domain": Marked(row.name, "few" if row.few else ""),
            "patches": row.scores.n,
            "atypical": row.scores.n_atypical,
            "balanced accuracy": _value(row, "balanced_accuracy"),
            "sensitivity": row.scores.sensitivity,
            "specificity": row.scores.specificity,
            "AUROC": _value(row, "roc_auc"),
        }
        for row in found.domains
    ]
    text = f"Scores of {found.chosen} within each domain, the largest first; few = fewer than {FEW} atypical patches."
    drawings: tuple[Drawing, ...] = ()
    if len(found.domains) > 1:
        dots = [_domain_dot(row) for row in found.domains]
        overall = next((row for row in found.rows if row.name == found.chosen), None)
        dots = [*([_dot(overall, "balanced_accuracy", found)] if overall else []), *dots]
        dots[0] = Dot(**{**vars(dots[0]), "name": "all", "other": None}) if overall else dots[0]
        caption = "Balanced accuracy by domain, 95 % case-bootstrap intervals. Hollow and grey: few."
        drawings = (Drawing(figures.interval_plot(dots, "balanced accuracy", CHANCE), caption),)
    return Section("By domain", text, drawings, table_html(rows))


def _domain_dot(row: ScoreRow) -> Dot:
    interval = row.intervals.get("balanced_accuracy")
    low, high = (interval.low, interval.high) if interval else (None, None)
    return Dot(row.name, row.scores.balanced_accuracy, low, high, faint=row.few)


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
    drawings = (
        Drawing(
            figures.roc(y, p, found.chosen, others if len(others) > 1 else None, point),
            "ROC. The dot is where the classes that were given lie.",
        ),
        Drawing(
            figures.reliability(y, p),
            "Reliability: dots on the diagonal mean that a confidence of .7 is atypical in 7 of 10 cases. "
            "Bars are 95 % Wilson intervals."
            + ("" if fitted else " Not calibrated yet: that is the blend's work."),
        ),
        Drawing(
            figures.threshold_curve(y, p, predictions.threshold, predictions.smooth),
            "Balanced accuracy against threshold"
            + (", raw (thin) and smoothed (bold). The threshold ships with the blend; the scores above used one "
               "fitted without the cases they score." if fitted else "; .5 is logit 0."),
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
        drawings.append(Drawing(drawing, caption, wide=len(with_logits) > 6))
    rows = [
        {
            "member": Marked(member.name, PLUMBING if member.random else ""),
            "backbone": member.backbone or "–",
            "starts from": "random weights" if member.random else "pretrained",
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
    rows = [{"": name, "value": value} for name, value in found.provenance]
    return Section("Provenance", "", html=table_html(rows, free=("value",)))


def reading_list(found: Findings) -> list[str]:
    """What to know before reading on, from the most to the least important."""
    lines = list(found.notes)
    row = found.row
    if row is None:
        return [*lines, "No fold is finished yet: scores appear with the first one."]
    lines += _optimism(row) + _best_member(found, row) + _weakest_domain(found) + _flatness(found)
    return lines


def _optimism(row: ScoreRow) -> list[str]:
    own, seen = row.scores.balanced_accuracy, row.in_sample.balanced_accuracy if row.in_sample else None
    if own is None or seen is None:
        return []
    return [
        f"Fitted and scored on the same cases the balanced accuracy would read {cell_text(seen)}; "
        f"the honest {cell_text(own)} is what to expect on new cases like these."
    ]


def _best_member(found: Findings, row: ScoreRow) -> list[str]:
    singles = [r for r in found.rows if r.name in {m.name for m in found.members} and r.scores.roc_auc is not None]
    if len(singles) < 2 or row.scores.roc_auc is None:
        return []
    best = max(singles, key=lambda r: r.scores.roc_auc or 0.0)
    gain = row.scores.roc_auc - (best.scores.roc_auc or 0.0)
    word = "above" if gain >= 0 else "below"
    return [
        f"AUROC is {cell_text(abs(gain))} {word} the best single member, {best.name} "
        f"({cell_text(best.scores.roc_auc)}); whether that is more than noise is what midog compare answers."
    ]


def _weakest_domain(found: Findings) -> list[str]:
    known = [row for row in found.domains if not row.few and row.scores.balanced_accuracy is not None]
    if len(known) < 2:
        return []
    worst = min(known, key=lambda r: r.scores.balanced_accuracy or 0.0)
    few = sum(row.few for row in found.domains)
    rest = f"; {few} of {len(found.domains)} domains have too few atypical patches to say" if few else ""
    return [f"Weakest domain: {worst.name}, balanced accuracy {cell_text(worst.scores.balanced_accuracy)}{rest}."]


def _flatness(found: Findings) -> list[str]:
    predictions = found.predictions
    if predictions is None or predictions.smooth is None:
        return []
    low, high = figures.flat_top(*predictions.smooth)
    return [
        f"Any threshold from {cell_text(low)} to {cell_text(high)} costs at most one point of balanced accuracy; "
        f"{cell_text(predictions.threshold)} was chosen."
    ]
