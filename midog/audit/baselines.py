"""What the score is worth against answers that know little: the majority, colours alone, a probe on the backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midog.audit.figures import said
from midog.audit.measure import ONCE, Settings, gain, probe_out_of_fold, score
from midog.audit.patches import Patches
from midog.audit.subject import Subject
from midog.errors import MidogError
from midog.report.figures import Dot, interval_plot
from midog.report.markup import Drawing, Section, Value, table_html

TITLE = "Baselines"
BINS = 16
TEXT = (
    "Look at how far the audited model lies to the right of the others. A colour histogram cannot see a mitotic "
    "figure: what it scores above .5 comes from stain and scanner, a shortcut that the next scanner may not offer. "
    "Good is a colour histogram near .5, and an audited model whose whole interval lies right of the linear probe's."
)
MAJORITY, COLOUR, PROBE = "majority class", "colour histogram", "linear probe"


def colour_histogram(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n, h, w, 3) uint8 to (n, 48): the share of pixels in each of 16 equal bins of R, G and B; no shape, no place."""
    n = len(images)
    place = (images.astype(np.int64) * BINS) // 256 + BINS * np.arange(3) + 3 * BINS * np.arange(n).reshape(n, 1, 1, 1)
    counts = np.bincount(place.ravel(), minlength=3 * BINS * n).reshape(n, 3 * BINS)
    return np.asarray(counts / (images.shape[1] * images.shape[2]), dtype=np.float64)


def majority(label: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Confidence and class of the answer that never looks: the share of atypical patches, and what is more frequent."""
    share = float(np.mean(label))
    return np.full(len(label), share), np.full(len(label), share > 0.5)


def measure(subject: Subject, patches: Patches, settings: Settings) -> dict[str, Any]:
    """Scores of each baseline, out of fold by case, and what the audited model gains over it, paired."""
    many = patches.draw(ONCE * settings.limit, settings.seed)
    y, case, ours = many.labels, many.cases, subject.answer(many)

    def by_probe(features: Callable[[], NDArray[Any]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        p = probe_out_of_fold(features(), y, case, settings.seed)
        return p, p >= 0.5

    def colours() -> NDArray[Any]:
        return np.concatenate([colour_histogram(many.pixels[at : at + 256]) for at in range(0, len(many), 256)])

    makers: dict[str, Callable[[], tuple[NDArray[np.float64], NDArray[np.bool_]]]] = {
        MAJORITY: lambda: majority(y),
        COLOUR: lambda: by_probe(colours),
        PROBE: lambda: by_probe(lambda: subject.frozen(many)),
    }
    rows: dict[str, Any] = {"audited": score(y, ours.p, ours.called, case)}
    for name, make in makers.items():
        try:
            theirs = make()
        except MidogError as error:
            rows[name] = {"problem": error.render()}
            continue
        rows[name] = {**score(y, *theirs, case), "gain": gain(y, case, (ours.p, ours.called), theirs)}
    return {"rows": rows, "backbone": subject.members[0].network.backbone.name}


def headline(found: dict[str, Any]) -> str:
    return "BA " + ", ".join(
        f"{name} {said(row['balanced_accuracy'])}" for name, row in found["rows"].items() if "problem" not in row
    )


def section(found: dict[str, Any]) -> Section:
    """Scores of the simplest ways to answer, beside those of the audited model."""
    known = {name: row for name, row in found["rows"].items() if "problem" not in row}
    names = {PROBE: f"{PROBE}, {found['backbone']}"}
    drawings = tuple(
        Drawing(
            interval_plot(
                [
                    Dot(name, row[metric]["value"], row[metric]["low"], row[metric]["high"], strong=name == "audited")
                    for name, row in known.items()
                ],
                words,
                0.5,
            ),
            f"{words}; probes are tested on cases that they never saw. 95 % case-bootstrap intervals.",
        )
        for metric, words in (("balanced_accuracy", "balanced accuracy"), ("roc_auc", "AUROC"))
    )
    rows = [
        {
            "": names.get(name, name),
            "balanced accuracy": Value(**row["balanced_accuracy"]),
            "AUROC": Value(**row["roc_auc"]),
            "audited gains, BA": Value(**row["gain"]["balanced_accuracy"]) if "gain" in row else None,
            "audited gains, AUROC": Value(**row["gain"]["roc_auc"]) if "gain" in row else None,
        }
        for name, row in known.items()
    ]
    problems = [
        f"- not run: {name}: {row['problem']}".replace("\n", " ")
        for name, row in found["rows"].items()
        if "problem" in row
    ]
    return Section(TITLE, TEXT, drawings, table_html(rows), "\n".join(problems))
