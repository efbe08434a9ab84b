"""The main job on real patches in minutes: check, train, blend, bundle, the challenge's own job, score, report."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midog.errors import ContractError, MidogError

if TYPE_CHECKING:
    from midog.bundle import Result
    from midog.run import Run
    from submission.scoring import Evaluation

Say = Callable[[str], None]
HOLD_OUT = 0.2
QUICK = ("each.training.epochs=1",)
QUICK_CASES = 40


@dataclass(frozen=True)
class Source:
    """Where the patches come from. `job` is a challenge job folder, or None where one has to be made; `weights` is the
    folder of pretrained weights beside the patches, or None where the environment names it, if anything does."""

    data: Path
    job: Path | None
    line: str
    weights: Path | None = None
    drawn: bool = False


def run_demo(out: Path, quick: bool = False, say: Say = print) -> Path:
    """Run the main job into `out`; returns the report's path. The same call twice continues or does nothing.

    Args:
        out: folder for the patch table, run, blend, bundle, challenge answers and report.html.
        quick: fewer cases and one epoch: proves the path, says nothing of quality.
        say: called with each line of progress.
    """
    from midog import api

    started, plain = time.monotonic(), say
    say = clocked(say, started)
    out.mkdir(parents=True, exist_ok=True)
    source = find_patches(out, say)
    say(source.line)
    table = make_table(source, out, quick, say)
    say("train: three small members on two folds of the cases that are not held out")
    settings = demo_settings(source, quick, say)
    run = api.train_recipe("demo", table, out / "run", sets=settings, pretrained=source.weights, report=say)
    say("blend: Optuna on the out-of-fold logits, every score cross-fitted by case")
    blend = api.blend_runs(run.path, folder=out / "blend", trials=50 if quick else None)
    blend.write(out / "blend")
    bundle = api.pack_bundle(out / "blend", out / "model.tar.gz", source.weights)
    say(f"bundle: {bundle} ({bundle.stat().st_size / 1e6:.0f} MB)")
    job, answers = answer_job(source, table, bundle, out, say)
    result, evaluation = score_held_out(bundle, table, out)
    page = write_page(out, job, answers, result, evaluation)
    for line in closing_lines(out, run, source, evaluation, time.monotonic() - started):
        plain(line)
    return page


def clocked(say: Say, started: float) -> Say:
    """`say` with the minutes and seconds since `started` before each message."""

    def timed(message: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        say(f"[{minutes}:{seconds:02d}] {message}")

    return timed


def find_patches(out: Path, say: Say) -> Source:
    """Real patches from the folder amibr of `MIDOG_DATA` or from `MIDOG_DATA` itself, else from ../shared/data, else
    from the public repository, else drawn ones."""
    named = os.environ.get("MIDOG_DATA")
    for place in (named, "../shared/data"):
        if place and (data := _amibr_in(Path(place))) is not None:
            job, weights = Path(place) / "job", Path(place) / "weights"
            line = f"data: AMi-Br patches in {place} (mitotic figures of human breast cancer; Bertram 2025, MIT)"
            return Source(data, job if job.is_dir() else None, line, weights if weights.is_dir() else None)
        if place and place == named:
            say(f"data: MIDOG_DATA is {place}, which neither holds a folder amibr nor is one: looking elsewhere")
    from midog.data import download, synthetic

    say("data: no patches at hand: asking AMi-Br's public repository; failing that, SYNTHETIC patches are drawn")
    try:
        return Source(download.download("amibr", out / "data"), None, "data: AMi-Br, downloaded (Bertram 2025, MIT)")
    except MidogError as error:
        say(f"data: {error.problem}")
    drawn = synthetic.draw(out / "drawn", cases=40, per_case=12)
    return Source(drawn, None, "data: SYNTHETIC drawn patches; every score below is about drawings", drawn=True)


def _amibr_in(place: Path) -> Path | None:
    """AMi-Br below a folder of data, or that folder where it is AMi-Br; None where there is none."""
    if (place / "amibr").is_dir():
        return place / "amibr"
    return place if (place / "AMI-BR.csv").is_file() else None


def make_table(source: Source, out: Path, quick: bool, say: Say) -> Path:
    """Check the patches, hold a fifth of the cases out, make two folds of the rest; returns patches.csv."""
    from midog import api

    checked = api.read_patches(source.data)
    if quick:
        cases = sorted(set(checked.table.column("case")))[:QUICK_CASES]
        checked = checked.with_table(checked.table.subset([patch.case in cases for patch in checked.table]))
    from midog.data import folds

    table = folds.make_folds(folds.hold_out(checked.table, HOLD_OUT), "grouped:2:0")
    checked = checked.with_table(table)
    say(checked.text())
    return checked.write(out / "patches.csv")


def demo_settings(source: Source, quick: bool, say: Say) -> tuple[str, ...]:
    """What the demo changes of its recipe: quick ones train one epoch; without ImageNet weights all start random."""
    from midog.models.backbones import find_backbone
    from midog.models.weights import find_weights

    changes: tuple[str, ...] = QUICK if quick else ()
    try:
        find_weights(find_backbone("mobilenetv2_100"), weights=source.weights)
    except MidogError as error:
        say(f"weights: {error.problem}; MobileNetV2 starts from random ones too")
        changes += ("members.mobilenet.pretrained=random",)
    return changes


def answer_job(source: Source, table: Path, bundle: Path, out: Path, say: Say) -> tuple[Path, list[dict[str, Any]]]:
    """Run the container's entry point on a challenge job, in a process without network; returns job and answers."""
    from midog.archive import unpack
    from midog.data.patches import read_table
    from midog.data.pixels import open_pixels
    from submission.challenge import TRACK2
    from submission.stack import write_job
    from submission.trial.jobs import open_to_all
    from submission.trial.runners import Conditions, ProcessRunner

    job = source.job
    if job is None:
        held_out = read_table(table)
        held_out = held_out.subset(held_out.column("split") == "test")
        job = write_job(out / "job", list(open_pixels(held_out.subset(range(16)))[range(16)]))
    answers = out / "challenge"
    shutil.rmtree(answers, ignore_errors=True)
    answers.mkdir()
    runner = ProcessRunner()
    how = "without network" if "D1" not in runner.skips() else "its network cannot be cut off here; it uses none"
    say(f"challenge job: {job} answered by the container's entry point (a process of its own, {how})")
    with tempfile.TemporaryDirectory(prefix="midog-demo-") as folder:
        unpack(bundle, Path(folder))
        open_to_all(Path(folder))
        outcome = runner.run(job, answers, Conditions(model=Path(folder)))
    if outcome.status:
        raise ContractError(f"the entry point failed with status {outcome.status}", "", [outcome.last_line])
    return job, json.loads((answers / TRACK2.output_file).read_text(encoding="utf-8"))


def score_held_out(bundle: Path, table: Path, out: Path) -> tuple[Result, Evaluation]:
    """Predict the held-out cases with the bundle and score them as the challenge does."""
    from midog import api
    from submission.evaluate import evaluate_predictions
    from submission.predict import predict_what

    result = predict_what(api.load_bundle(bundle), table, split="test")
    predictions = result.write(out / "held_out.csv")
    evaluation = evaluate_predictions(predictions, table, by="scanner", split="test")
    evaluation.write(out / "metrics.json")
    return result, evaluation


def write_page(out: Path, job: Path, answers: Sequence[dict[str, Any]], result: Result, evaluation: Evaluation) -> Path:
    """demo/report.html: the held-out scores and the challenge job first, then the blend's own page, then what others
    published, with its protocol."""
    import numpy as np

    from midog.report.page import Section, job_figure, published_section, report, table_html
    from submission.challenge import TRACK2
    from submission.stack import read_job

    held_out = Section(
        "The cases that no model saw",
        f"{len(result)} patches of the cases held out before training, scored with the challenge's metrics. The bundle "
        "averages its fold models here, as it does on the platform.",
        html=table_html([_plain(row) for row in evaluation.rows()]),
    )
    pages = [np.zeros((128, 128, 3), np.uint8) if page is None else page for page in read_job(job).pages]
    shown = job_figure(
        pages,
        [answer[TRACK2.confidence_key] for answer in answers],
        [answer[TRACK2.class_key] == TRACK2.atypical for answer in answers],
    )
    stack = Section(
        f"A challenge job: {len(pages)} pages, answered",
        "Written by the container's entry point in a process without network. Under each page: class, P(atypical).",
        html=shown,
    )
    return report(
        out / "blend", out / "report.html", "midog demo", first=(held_out, stack), sections=(published_section(),)
    )


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    names = {
        "domain": "scanner",
        "n": "patches",
        "atypical": "atypical",
        "balanced_accuracy": "balanced accuracy",
        "sensitivity": "sensitivity",
        "specificity": "specificity",
        "roc_auc": "AUROC",
    }
    interval = None if row["low"] is None else (row["low"], row["high"])
    return {title: row[key] for key, title in names.items()} | {"balanced accuracy, 95 %": interval}


def closing_lines(out: Path, run: Run, source: Source, evaluation: Evaluation, seconds: float) -> list[str]:
    """What was made, how good it is, what to type next."""
    found, interval = evaluation.scores, evaluation.intervals.get("balanced_accuracy")
    spread = f" (95 % {interval.low:.3f} to {interval.high:.3f})" if interval else ""
    random = [name for name in run.members if run.recipe["members"][name]["pretrained"] == "random"]
    what = "drawn patches" if source.drawn else "patches of cases no model saw"
    lines = [
        "",
        f"made in {seconds / 60:.1f} minutes: {out}/patches.csv, run, blend, model.tar.gz, challenge, report.html",
        f"held out: balanced accuracy {_three(found.balanced_accuracy)}{spread}, AUROC {_three(found.roc_auc)} on "
        f"{found.n} {what} ({found.n_atypical} atypical); chance is .500",
        "minutes of CPU training on two folds: a proof of the path, not a contender (published elsewhere: .79 to .91)",
    ]
    if random:
        lines.append(f"plumbing, not evidence: {', '.join(random)} started from random weights")
    return [
        *lines,
        f"look: {out}/report.html",
        "next, with your own data: midog check YOUR_DATA -o patches.csv && midog train cpu-small patches.csv",
    ]


def _three(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
