"""What scanner, stain and file do to a patch: noise, JPEG, blur, H&E, brightness, in five severities of our choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augment.optics import blur, brighten, compress
from augment.stain import jitter_stain
from midog.audit.figures import curves, said
from midog.audit.measure import Settings, estimate, score
from midog.audit.patches import Change, Patches
from midog.audit.subject import Subject
from midog.metrics import percentile_interval, replicates
from midog.report.markup import Section, Value, table_html

TITLE = "Corruption"
SEVERITIES = 5
Patch = NDArray[np.uint8]
TEXT = (
    "Look for the curve that falls first: what it shows should be in the augmentation. Good is a curve that stays in "
    "the band of severity 0 up to severity 2; 1 and 2 are mild, 4 and 5 plain to the eye. The table gives each curve's "
    "mean over severities 1 to 5, and what is lost at 5."
)


def _noise(image: Patch, level: float, rng: np.random.Generator) -> Patch:
    return np.clip(np.rint(image + rng.normal(0, level, image.shape)), 0, 255).astype(np.uint8)


def _stain(image: Patch, level: float, rng: np.random.Generator) -> Patch:
    return jitter_stain(image, [*(1 + level * rng.choice((-1, 1), 2)), 1.0])


CORRUPTIONS: dict[str, tuple[tuple[float, ...], Callable[[Patch, float, np.random.Generator], Patch], str]] = {
    "noise": ((4, 8, 14, 22, 32), _noise, "standard deviation in grey levels"),
    "JPEG": ((80, 60, 40, 25, 12), lambda image, level, rng: compress(image, int(level)), "quality"),
    "blur": ((0.6, 1.0, 1.5, 2.2, 3.0), lambda image, level, rng: blur(image, level), "sigma in pixels"),
    "H&E": ((0.1, 0.2, 0.3, 0.45, 0.6), _stain, "change of each stain's amount, up or down"),
    "brightness": (
        (0.04, 0.08, 0.14, 0.2, 0.28),
        lambda image, level, rng: brighten(image, float(level * rng.choice((-1, 1))), 0.0),
        "share of the full range, up or down",
    ),
}


def corrupt(kind: str, severity: int) -> Change | None:
    """A patch at a severity from 0 (None: the patch itself) to 5; draws depend on the patch and the kind alone."""
    if severity == 0:
        return None
    levels, change, _ = CORRUPTIONS[kind]
    number = list(CORRUPTIONS).index(kind)
    return lambda image, seed: change(image, levels[severity - 1], np.random.default_rng((seed, number)))


def measure(subject: Subject, patches: Patches, settings: Settings) -> dict[str, Any]:
    """Scores of each corruption at severities 0 to 5, the mean over 1 to 5, and the loss at 5, paired by case."""
    few = patches.draw(settings.limit, settings.seed)
    found: dict[str, Any] = {}
    for kind, (levels, _, unit) in CORRUPTIONS.items():
        answers = [subject.answer(few, corrupt(kind, severity)) for severity in range(SEVERITIES + 1)]
        rows = [score(few.labels, a.p, a.called, few.cases) for a in answers]
        many = [
            replicates(few.labels, a.p, a.called, few.cases, ("balanced_accuracy",))["balanced_accuracy"]
            for a in answers
        ]
        values = [row["balanced_accuracy"]["value"] for row in rows]
        known = values[0] is not None
        found[kind] = {
            "unit": unit,
            "levels": list(levels),
            "severities": rows,
            "mean": estimate(
                float(np.mean(values[1:])) if known else None,
                percentile_interval(np.mean(many[1:], axis=0)) if known else None,
            ),
            "loss": estimate(
                values[0] - values[-1] if known else None, percentile_interval(many[0] - many[-1]) if known else None
            ),
        }
    return {"corruptions": found}


def headline(found: dict[str, Any]) -> str:
    known = {name: row for name, row in found["corruptions"].items() if row["mean"]["value"] is not None}
    if not known:
        return "a class is missing: no balanced accuracy"
    worst = min(known, key=lambda name: known[name]["mean"]["value"])
    clean = known[worst]["severities"][0]["balanced_accuracy"]
    return f"BA {said(clean)} clean; worst {worst}: {said(known[worst]['mean'])} on average over five severities"


def section(found: dict[str, Any]) -> Section:
    """What each corruption costs at each severity."""
    panels = {
        name: {
            "lines": {"": [step["balanced_accuracy"] for step in row["severities"]]},
            "at": range(SEVERITIES + 1),
        }
        for name, row in found["corruptions"].items()
    }
    rows = [
        {
            "corruption": name,
            "clean": row["severities"][0]["balanced_accuracy"]["value"],
            "mean of severities 1–5": Value(**row["mean"]),
            "loss at severity 5": Value(**row["loss"]),
            "severities": ", ".join(f"{level:g}" for level in row["levels"]),
            "what they are": row["unit"],
        }
        for name, row in found["corruptions"].items()
    ]
    note = "Balanced accuracy against severity, 0 = clean. Bands: 95 % case-bootstrap intervals; dotted: chance."
    return Section(TITLE, TEXT, curves(panels, "severity"), table_html(rows), note, small=True)
