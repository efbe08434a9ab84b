"""Does a confidence of .7 mean seven in ten? Overall, by domain, and where the fit never saw the domain."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.calibrate import fit_calibration
from midog.audit.figures import said
from midog.audit.measure import ONCE, Floats, Settings, case_folds, estimate, groups, mean
from midog.audit.patches import Patches
from midog.audit.subject import Subject
from midog.errors import DataError
from midog.metrics import REPLICATES, case_index, draw_cases, percentile_interval
from midog.report.figures import Dot, interval_plot, reliability
from midog.report.findings import FEW
from midog.report.markup import Drawing, Marked, Section, Value, table_html
from midog.run import sigmoid

TITLE = "Calibration"
BINS = 15
TEXT = (
    "In the first figure look for dots on the diagonal: there a confidence of .7 is atypical in seven of ten. In "
    "the second look for domains far to the right of the others: there the confidence misleads even where the "
    "ranking is good. The error is never 0 on few patches; the ring is what a perfectly calibrated model of this "
    "size would show, so good is a dot near its ring. In the third, shift and temperature were fitted anew: for the "
    "dot on other domains of these patches, for the ring on other cases of all domains. Good is a dot on its ring, for "
    "the next scanner is in no fit. In the table, confidence in the class that was called should equal accuracy, and "
    "mean P(atypical) the share of atypical patches."
)


def expected_error(label: ArrayLike, p: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error: Σ over equal-width bins of (share of patches)·|mean confidence − share atypical|.

    Source: Naeini et al. 2015 and Guo et al. 2017, here of P(atypical) itself.
    """
    gap = _gaps(np.asarray(label, dtype=np.float64), np.asarray(p, dtype=np.float64), bins)
    return float(np.abs(gap.sum(axis=0)).sum() / len(gap))


def _gaps(y: Floats, p: Floats, bins: int) -> Floats:
    """(n, bins): confidence minus label in the patch's bin."""
    if not len(y) or y.shape != p.shape:
        raise DataError(f"{len(y)} labels for {len(p)} confidences")
    gap = np.zeros((len(y), bins))
    gap[np.arange(len(y)), np.minimum((p * bins).astype(np.int64), bins - 1)] = p - y
    return gap


def error_estimate(label: ArrayLike, p: ArrayLike, case: ArrayLike) -> dict[str, Any]:
    """The error with its case-bootstrap interval, centred on it, and `chance`, its mean were the confidences true.

    Our choice: the centring, and 200 draws for the latter.
    """
    y, confidence = np.asarray(label, dtype=np.float64), np.asarray(p, dtype=np.float64)
    index, cases = case_index(case)
    interval = None
    if cases > 1:
        sums = np.zeros((cases, BINS))
        np.add.at(sums, index, _gaps(y, confidence, BINS))
        drawn = draw_cases(cases, REPLICATES, 0)
        many = np.abs(drawn @ sums).sum(axis=1) / (drawn @ np.bincount(index, minlength=cases))
        # Redrawing adds noise to every bin, and noise in either direction is error: without this the interval lies
        # above the value that it belongs to.
        interval = percentile_interval(np.maximum(many - many.mean() + expected_error(y, confidence), 0.0))
    draws = np.random.default_rng(0).random((200, len(y))) < confidence
    chance = float(np.mean([expected_error(one, confidence) for one in draws]))
    return {**estimate(expected_error(y, confidence), interval), "chance": chance}


def refitted(z: ArrayLike, label: ArrayLike, part: ArrayLike) -> Floats:
    """(n,) P(atypical), each by shift and temperature fitted on the other parts; NaN where those hold one class.

    Args:
        z: (n,) finite blended logits. label: (n,) 0 or 1. part: (n,) words or numbers; "" is neither fitted nor given.
    """
    logits, y, words = np.asarray(z, dtype=np.float64), np.asarray(label), np.asarray(part).astype(str)
    p = np.full(len(y), np.nan)
    for name in np.unique(words[words != ""]):
        own, other = words == name, (words != name) & (words != "")
        if 0 < y[other].sum() < other.sum():
            p[own] = sigmoid(fit_calibration(logits[other], y[other]).scale(logits[own]))
    return p


def case_parts(label: ArrayLike, case: ArrayLike, seed: int) -> NDArray[np.str_]:
    """(n,) number of the part by case that each patch is in; "" throughout where there are too few cases."""
    part = np.full(len(np.asarray(label)), "", dtype="<U2")
    try:
        folds = case_folds(label, case, seed)
    except DataError:
        return part
    for number, (_, test) in enumerate(folds):
        part[test] = str(number)
    return part


def measure(subject: Subject, patches: Patches, settings: Settings) -> dict[str, Any]:
    """Error and Brier score of all patches, each scanner and tumour; the error also by fits that did not see it."""
    many = patches.draw(ONCE * settings.limit, settings.seed)
    found = subject.answer(many)
    everything = ("all", "all", np.ones(len(many), dtype=np.bool_))
    columns = {by: many.column(by) for by in ("scanner", "tumour")}
    by_case = refitted(found.z, many.labels, case_parts(many.labels, many.cases, settings.seed))
    unseen = {by: refitted(found.z, many.labels, words) for by, words in columns.items()}
    rows = []
    for by, group, chosen in (everything, *groups(columns)):
        y, p, case = many.labels[chosen], found.p[chosen], many.cases[chosen]
        called = found.called[chosen]
        fits = {"by_case": by_case[chosen], **({"left_out": unseen[by][chosen]} if by in unseen else {})}
        rows.append(
            {
                "by": by,
                "group": group,
                "n": len(y),
                "n_atypical": int(y.sum()),
                "few": int(y.sum()) < FEW,
                "error": error_estimate(y, p, case),
                "brier": mean((p - y) ** 2, case),
                "confidence": float(np.where(called, p, 1 - p).mean()),
                "accuracy": float((called == (y == 1)).mean()),
                "predicted": float(p.mean()),
                "atypical": float(y.mean()),
                **{name: error_estimate(y, q, case) for name, q in fits.items() if np.isfinite(q).all()},
            }
        )
    calibrated = subject.kind != "run"
    return {"calibrated": calibrated, "rows": rows, "label": many.labels.tolist(), "confidence": found.p.tolist()}


def headline(found: dict[str, Any]) -> str:
    row = found["rows"][0]
    return f"expected calibration error {said(row['error'])} ({row['error']['chance']:.3f} if perfect), Brier " + said(
        row["brier"]
    )


def section(found: dict[str, Any]) -> Section:
    """Calibration in each domain, and what one fitted without the domain leaves."""
    dots, unseen, rows = [], [], []
    for row in found["rows"]:
        error, name = row["error"], row["group"]
        dots.append(
            Dot(
                name, error["value"], error["low"], error["high"], error["chance"], row["by"] == "all",
                faint=row["few"], hollow=row["few"],
            )
        )  # fmt: skip
        left, by_case = row.get("left_out"), row.get("by_case")
        if left is not None:
            other = None if by_case is None else by_case["value"]
            unseen.append(
                Dot(name, left["value"], left["low"], left["high"], other, faint=row["few"], hollow=row["few"])
            )
        rows.append(
            {
                "": Marked(name, "few" if row["few"] else ""),
                "patches": row["n"],
                "atypical": row["n_atypical"],
                "calibration error": Value(error["value"], error["low"], error["high"]),
                "if perfect": error["chance"],
                "Brier": Value(**row["brier"]),
                "without the domain": None if left is None else left["value"],
                "without the case": None if by_case is None else by_case["value"],
                "confidence": row["confidence"],
                "accuracy": row["accuracy"],
                "mean P": row["predicted"],
                "share": row["atypical"],
            }
        )
    drawings = [
        Drawing(reliability(found["label"], found["confidence"]), "All patches; bars are 95 % Wilson intervals."),
        Drawing(interval_plot(dots, "expected calibration error"), "15 bins, 95 % case-bootstrap intervals."),
    ]
    if unseen:
        caption = "Shift and temperature fitted without the domain; ring: without the case."
        drawings.append(Drawing(interval_plot(unseen, "expected calibration error"), caption))
    note = "" if found["calibrated"] else "A run alone is not calibrated: that is the blend's work."
    return Section(TITLE, TEXT, tuple(drawings), table_html(rows), note)
