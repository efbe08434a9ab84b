"""The check-list of what the platform asks of an algorithm: one small function per line, one verdict each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from submission.trial import output_checks as output
from submission.trial import surrounding_checks as surroundings
from submission.trial.invocation import judge_invocation
from submission.trial.jobs import Job
from submission.trial.many import judge_many
from submission.trial.output_checks import Check
from submission.trial.runners import Runner
from submission.trial.trials import Evidence, Predict, Report, gather
from submission.verdict import Verdict, passed

CHECKS: Mapping[str, tuple[str, Check]] = {
    "B1": ("inputs.json in shapes A, B, C, unreadable, or missing", output.inputs("B1")),
    "B2": ("suffixes .tif .tiff .TIF .mha", output.inputs("B2")),
    "B3": ("1, 2, 15, 16 and 17 pages", output.inputs("B3")),
    "B4": ("planar, tiled, LZW, JPEG, uncompressed, BigTIFF", output.inputs("B4")),
    "B5": ("RGBA, grey, palette, CMYK, 16-bit, float", output.inputs("B5")),
    "B6": ("pages of other sizes, up to 20,000 pixels", output.inputs("B6")),
    "B7": ("MHA in 2-D and 3-D, vector and scalar", output.inputs("B7")),
    "B8": ("a damaged page: an entry all the same, and a warning", output.inputs("B8")),
    "B9": ("cut short, no image, several, no page: status 5", output.inputs("B9")),
    "B10": ("/input is a symbolic link, and read-only", output.inputs("B10")),
    "B11": ("hidden files beside the image", output.inputs("B11")),
    "B12": ("unknown keys, foreign inputs", output.inputs("B12")),
    "C1": ("a list of one object per page", output.on_all(output.list_of_objects)),
    "C2": ("exact class words", output.on_all(output.class_words)),
    "C3": ("every confidence a JSON float in [0, 1]", output.on_all(output.floats)),
    "C4": ("the class follows the threshold", output.threshold_rule),
    "C5": ("no NaN in the text", output.on_all(output.no_nan)),
    "C6": ("the same bytes on a second run", output.same_answer("again")),
    "C7": ("permuted pages give permuted entries, single ones the same", output.order),
    "C8": ("black, white and equal pages", output.extremes),
    "C9": ("nothing else in /output", output.nothing_else),
    "C10": ("the confidences of midog predict", output.as_predicted),
    "D1": ("no network", surroundings.no_network),
    "D2": ("not root, with a passwd entry", surroundings.other_user),
    "D3": ("HOME cannot be written", output.same_answer("unwritable HOME")),
    "D4": ("root read-only, /tmp empty and writable", surroundings.read_only_root),
    "D5": ("memory limited", surroundings.memory_limit),
    "D6": ("little shared memory, few processes, no capabilities", surroundings.confined),
    "D7": ("no GPU", surroundings.no_gpu),
    "D8": ("/opt/ml/model empty, nested, foreign, damaged", surroundings.models),
    "D9": ("another working directory", output.same_answer("other working directory")),
    "D10": ("stdout and stderr are UTF-8 in short lines", surroundings.clean_streams),
    "D11": ("wall time per job", surroundings.times),
    "D12": ("peak memory", surroundings.memory),
    "D13": ("each failure ends with problem and fix", surroundings.last_lines),
    "D14": ("/tmp as an earlier task left it", output.same_answer("dirty /tmp")),
    "D15": ("the exit status passes through", surroundings.status_passes),
    "E6": ("joined and scored as the challenge does", output.evaluated),
}
"""Line → what it asks, and the function that judges it."""


@dataclass(frozen=True)
class Conformance:
    """verdicts: one per line of the check-list, in its order. times: seconds of each run by its name."""

    verdicts: tuple[Verdict, ...]
    times: Mapping[str, float]


def conform(
    runner: Runner,
    jobs: Sequence[Job],
    bundle: Path | None,
    folder: Path,
    report: Report = print,
    predict: Predict | None = None,
    threshold: float | None = None,
    many: Sequence[Job] = (),
) -> Conformance:
    """Run the algorithm on every job and judge it, line by line.

    Args:
        jobs: from `make_jobs`; a part of them leaves the other lines skipped.
        bundle: model.tar.gz or an unpacked folder, shown at /opt/ml/model; None: the algorithm brings its weights.
        folder: for outputs and what is made for the odd conditions.
        report: called with one short line per run.
        predict: confidences for a job folder; by default the bundle's own, by the way of `midog predict`.
        threshold: of the confidence; by default the bundle's.
        many: from `random_jobs`: stacks for one server beside the check-list; none: no line E2.

    Raises: UsageError without weights or jobs; WeightsError or ContractError for a bundle that cannot be unpacked.
    """
    evidence = gather(runner, jobs, bundle, folder, report, predict, threshold)
    verdicts = [judge(line, what, check, evidence) for line, (what, check) in CHECKS.items()]
    report("the invoke flavour, asked from inside")
    verdicts += judge_invocation(evidence)
    if many:
        report(f"{len(many)} random stacks, by one server")
        verdicts.append(judge_many(evidence, many))
    return Conformance(tuple(verdicts), {trial.name: trial.outcome.seconds for trial in evidence.all})


def judge(line: str, what: str, check: Check, evidence: Evidence) -> Verdict:
    """The verdict on one line; what the runner cannot show, and what nothing was run for, is skipped."""
    why = evidence.runner.skips().get(line)
    if why is None and line.startswith("B") and not evidence.serving(line):
        why = "no job for it"
    if why is not None:
        return Verdict(line, what, "skip", why)
    found = check(evidence)
    if isinstance(found, Verdict):
        return Verdict(line, what, found.status, found.detail)
    count = f"{len(evidence.serving(line))} jobs" if line.startswith("B") else ""
    return passed(line, what, not found, found or count)
