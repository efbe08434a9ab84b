"""What is uploaded: the saved image, checked as the upload will check it, and its line in the ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midog.archive import bundle_path
from midog.bundle import Bundle, open_bundle
from midog.errors import UsageError
from midog.files import sha256_file
from submission.archive import Preflight, preflight
from submission.challenge import TRACK2
from submission.container import save_image
from submission.engine import Engine
from submission.ledger import Entry, append, report_scores


@dataclass(frozen=True)
class Saved:
    """What `save` made; `tarball` is None where the bundle is a folder and nothing but the image is uploaded."""

    image: Path
    tarball: Path | None
    weights: str
    checked: Preflight

    def text(self) -> str:
        return self.checked.text() + (
            "\n\n" + web_form(self.image, self.tarball, self.weights) if self.checked.good else ""
        )


def save(
    engine: Engine, tag: str, bundle: Path | str, out: Path, weights: str, ledger: Path, report: Callable[[str], None]
) -> Saved:
    """Write the archive of image `tag`, check it, and enter it in the ledger where the check is passed.

    Raises: UsageError when weights are to be uploaded and `bundle` is no .tar.gz; what `save_image` raises.
    """
    opened = open_bundle(bundle)
    path = bundle_path(bundle)
    tarball = path if path.is_file() else None
    if weights == "none" and tarball is None:
        raise UsageError(f"{bundle} is a folder", "the platform takes a tarball: midog bundle BLEND -o model.tar.gz")
    report(f"saving {tag}: minutes, as a CUDA image is 7 GB")
    save_image(engine, tag, out)
    report(f"checking {out} as the upload will")
    checked = preflight(out, bundle=path if weights == "baked" else None, ledger=ledger)
    if checked.good:
        labels = engine.config(tag).get("Labels") or {}
        entry = Entry(
            "saved",
            checked.image_digest,
            archive=checked.sha256,
            tarball=sha256_file(tarball) if tarball else "",
            submission=labels.get(TRACK2.submission_label, ""),
            commit=labels.get(TRACK2.commit_label, ""),
            **describe(opened),
        )
        append(ledger, entry)
    return Saved(out, tarball, weights, checked)


def describe(bundle: Bundle) -> dict[str, Any]:
    """What a bundle was made of, and how well its blend scored where no fold model had seen the case."""
    runs = bundle.manifest["runs"]
    content = bundle.blend.content
    kind = content["settings"]["kind"]
    rows = [row for row in content["scores"] if row["name"] == kind and row["group"] == "all"]
    fitted = rows[0]["cross_fitted"] if rows else {}
    return {
        "bundle": bundle.digest,
        "recipe": ", ".join(str(run["name"]) for run in runs),
        "data_sha256": content["data_hash"],
        "folds_sha256": content["folds_hash"],
        "scores": {name: fitted[name] for name in TRACK2.overall_keys if fitted.get(name) is not None},
    }


def enter_scores(ledger: Path, words: Sequence[str]) -> Entry:
    """Note what the site reported. `words`: submission id or digest, then METRIC=VALUE.

    Raises: UsageError for words of another form, an unknown image or metric, or a value outside [0, 1].
    """
    fix = "--score ID --score balanced_accuracy=0.88 --score roc_auc=0.94"
    which = [word for word in words if "=" not in word]
    if len(which) != 1:
        raise UsageError("one image and its scores are needed", fix)
    scores = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            try:
                scores[name] = float(value)
            except ValueError:
                raise UsageError(f"{word}: {value!r} is no number", fix) from None
    return report_scores(ledger, which[0], scores)


def web_form(image: Path, tarball: Path | None, weights: str) -> str:
    """The steps that remain: the platform takes no container from a command line."""
    model = "no model tarball: the weights are in the image" if weights == "baked" else f"Models, upload: {tarball}"
    steps = [
        f"Containers, upload: {image}; the import takes about 20 minutes",
        model,
        f"Settings: input {TRACK2.input_slug}, output {TRACK2.output_slug}; tick GPU if the ensemble needs one",
        "Try-out with one stack, and compare with: midog predict BUNDLE STACK -o out.csv",
        "submit to the phase, then note it: midog container list --sent ID",
        "once the site shows scores: midog container list --score ID --score balanced_accuracy=…",
    ]
    return "\n".join(
        ["what remains, by hand, on grand-challenge.org:", *(f"  {n} {s}" for n, s in enumerate(steps, 1))]
    )
