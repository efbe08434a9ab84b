"""What to read first: the few sentences that keep a reader from a wrong conclusion."""

from __future__ import annotations

from midog.report.curves import flat_top
from midog.report.findings import Findings, ScoreRow
from midog.report.text import cell_text


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
        f"the cross-fitted {cell_text(own)} is the honest estimate for new cases like these."
    ]


def _best_member(found: Findings, row: ScoreRow) -> list[str]:
    if found.chosen in {member.name for member in found.members}:
        return []
    singles = [r for r in found.rows if r.name in {m.name for m in found.members} and r.scores.roc_auc is not None]
    if len(singles) < 2 or row.scores.roc_auc is None:
        return []
    best = max(singles, key=lambda r: r.scores.roc_auc or 0.0)
    gain, known = row.scores.roc_auc - (best.scores.roc_auc or 0.0), cell_text(best.scores.roc_auc)
    if abs(gain) < 0.0005:
        return [f"AUROC equals that of the best single member, {best.name} ({known})."]
    return [
        f"AUROC is {cell_text(abs(gain))} {'above' if gain > 0 else 'below'} the best single member, {best.name} "
        f"({known}); whether that is more than noise is what midog compare answers."
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
    if predictions is None or predictions.smooth is None or found.kind != "blend":
        return []
    low, high = flat_top(*predictions.smooth)
    return [
        f"Any threshold from {cell_text(low)} to {cell_text(high)} costs at most one point of balanced accuracy; "
        f"{cell_text(predictions.threshold)} was chosen."
    ]
