"""What is uploaded: the saved image, checked as the upload will check it, and its line in the ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from midog.archive import bundle_path
from midog.bundle import Bundle, open_bundle
from midog.errors import UsageError
from midog.files import sha256_file
from submission.archive import Preflight, preflight
from submission.challenge import TRACK2
from submission.container import WEIGHTS, save_image
from submission.engine import Engine
from submission.ledger import Entry, append, read_ledger, report_scores, used_before
from submission.preflight.rules import BUNDLE
from submission.verdict import Verdict


@dataclass(frozen=True)
class Saved:
    """What `save` made; `tarball` is None where the weights are in the image and nothing else is uploaded."""

    image: Path
    tarball: Path | None
    checked: Preflight

    def text(self) -> str:
        return self.checked.text() + ("\n\n" + web_form(self.image, self.tarball) if self.checked.good else "")


def save(
    engine: Engine, tag: str, bundle: Path | str, out: Path, weights: str, ledger: Path, report: Callable[[str], None]
) -> Saved:
    """Write the archive of image `tag`, check it, and enter it in the ledger where the check is passed.

    weights: baked, so the image must hold a bundle; or none: `bundle` is the tarball that is uploaded beside it.

    Raises: UsageError for another word, or when weights are to be uploaded and `bundle` is no .tar.gz, or one that was
        uploaded before; what `save_image` raises.
    """
    if weights not in WEIGHTS:
        raise UsageError(f"--weights {weights}", f"--weights {' or '.join(WEIGHTS)}")
    opened = open_bundle(bundle)
    path = bundle_path(bundle)
    tarball = path if weights == "none" else None
    digest = _new_tarball(path, ledger) if weights == "none" else ""
    report(f"saving {tag}: minutes, as a CUDA image is 7 GB")
    save_image(engine, tag, out)
    report(f"checking {out} as the upload will")
    checked = preflight(out, bundle=path if weights == "baked" else None, ledger=ledger)
    checked = replace(checked, verdicts=tuple(_with_weights(verdict, weights) for verdict in checked.verdicts))
    if checked.good:
        labels = engine.config(tag).get("Labels") or {}
        entry = Entry(
            "saved",
            checked.image_digest,
            archive=checked.sha256,
            tarball=digest,
            submission=labels.get(TRACK2.submission_label, ""),
            commit=labels.get(TRACK2.commit_label, ""),
            **describe(opened),
        )
        append(ledger, entry)
    return Saved(out, tarball, checked)


def _new_tarball(path: Path, ledger: Path) -> str:
    """The digest of a model tarball that can be uploaded. Raises: UsageError for a folder, or one uploaded before."""
    if not path.is_file():
        raise UsageError(f"{path} is a folder", "the platform takes a tarball: midog bundle BLEND -o model.tar.gz")
    digest = sha256_file(path)
    used = used_before(read_ledger(ledger), digest)
    if used is not None:
        raise UsageError(
            f"{path} has already been uploaded ({used.event} on {used.date}, submission {used.submission or 'unknown'})"
            ", and the platform takes no model twice",
            f"bake these weights in: midog container build {path}, then midog container save {path}",
        )
    return digest


def _with_weights(verdict: Verdict, weights: str) -> Verdict:
    """A14 once it is known whether a tarball comes with the image; every other verdict as it is."""
    if verdict.what != BUNDLE:
        return verdict
    if weights == "baked" and verdict.status == "warn":
        fix = "bake them in: midog container build BUNDLE; or upload a tarball: --weights none"
        return replace(verdict, status="fail", detail=f"none, and no tarball comes with it: no weights at all; {fix}")
    if weights == "none" and verdict.status == "pass":
        return replace(verdict, status="warn", detail=f"{verdict.detail}; the uploaded tarball goes before it")
    return verdict


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


def web_form(image: Path, tarball: Path | None) -> str:
    """The steps that remain: the platform takes no container from a command line."""
    model = "no model tarball: the weights are in the image" if tarball is None else f"Models, upload: {tarball}"
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
