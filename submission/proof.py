"""Prove an image, or the plain handler, on generated jobs under the contract: what `midog container test` does."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midog.bundle import Bundle, open_bundle
from midog.errors import DataError
from submission.challenge import TRACK2
from submission.conformance import conform
from submission.container import image_digest
from submission.engine import Engine, EngineRunner, contract_flags, find_engine
from submission.predict import predict_what
from submission.trial.jobs import make_jobs
from submission.trial.many import random_jobs
from submission.trial.runners import APP, Conditions, ProcessRunner, Runner
from submission.verdict import Verdict, failures, passed, verdict_table

Report = Callable[[str], None]
F5 = "label and ENTRYPOINT agree"


@dataclass(frozen=True)
class Proof:
    """What to prove: the image `tag` in an engine, or the plain handler where `contained` is False.

    weights: baked, or none: the bundle is mounted as the platform mounts a tarball. patches: a patch table whose `test`
    rows make the stacks; None draws them. memory: bytes a job may hold. out: folder for jobs and outputs. stacks:
    random ones for one server, beside the check-list.
    """

    bundle: str
    tag: str
    engine: str | None
    contained: bool
    weights: str
    patches: Path | None
    memory: int
    gpu: bool
    out: Path
    stacks: int = 0


@dataclass(frozen=True)
class Proven:
    """Verdicts in the check-list's order; `times` are seconds of each run by name."""

    name: str
    verdicts: tuple[Verdict, ...]
    times: Mapping[str, float]

    @property
    def failed(self) -> list[Verdict]:
        return failures(self.verdicts)

    def text(self) -> str:
        return (
            f"{self.name}: {len(self.times)} runs, {sum(self.times.values()):.0f} s\n\n{verdict_table(self.verdicts)}"
        )

    def plain(self) -> dict[str, Any]:
        return {"runner": self.name, "verdicts": [v.plain() for v in self.verdicts], "seconds": dict(self.times)}


def prove(proof: Proof, report: Report) -> Proven:
    """Run every job and judge every line. Raises: MidogError without engine or image; WeightsError for the bundle."""
    bundle = opened(proof)
    runner, about = _runner(proof)
    pages, labels = _patches(proof.patches) if proof.patches else (None, None)
    jobs = make_jobs(proof.out / "jobs", pages, labels)
    many = random_jobs(proof.out / "random-jobs", proof.stacks, pages, labels) if proof.stacks else ()
    shown = None if runner.baked else bundle.folder
    result = conform(runner, jobs, shown, proof.out, report, _predictor(bundle), bundle.point.threshold, many)
    return Proven(runner.name, (*result.verdicts, *about), result.times)


def opened(proof: Proof) -> Bundle:
    """The bundle on the device that a job is given: this machine may have a GPU, whose half precision answers apart."""
    return open_bundle(proof.bundle, device="auto" if proof.gpu else "cpu")


def _runner(proof: Proof) -> tuple[Runner, list[Verdict]]:
    """How to run a job, and what can be said of the image without running it."""
    if not proof.contained:
        return ProcessRunner(), [Verdict("F5", F5, "skip", "no image: the same handler in a plain process")]
    engine = find_engine(proof.engine)
    digest = image_digest(engine, proof.tag)
    size = int(engine.output("image", "inspect", "--format", "{{.Size}}", proof.tag))
    baked = proof.weights == "baked"
    runner = EngineRunner(engine, proof.tag, baked, proof.memory, proof.gpu, proof.out)
    proof.out.mkdir(parents=True, exist_ok=True)  # where the engine is started: it may leave files behind
    image = Verdict("A12", "image", "info", f"{proof.tag}, {digest[:19]}, {size / 1e9:.2f} GB")
    return runner, [_flavour(engine.config(proof.tag)), image]


def _flavour(config: dict[str, Any]) -> Verdict:
    """The label tells the platform how to call, the variable tells the handler how it is called."""
    label = (config.get("Labels") or {}).get(TRACK2.api_label, TRACK2.api_methods[0])
    variables = dict(str(line).partition("=")[::2] for line in config.get("Env") or [])
    handler = variables.get(TRACK2.api_variable) or TRACK2.api_methods[0]
    entry = config.get("Entrypoint") or []
    words = entry if isinstance(entry, list) else str(entry).split()
    good = label == handler and bool(words) and words[-1] == f"{APP}/inference.py"
    return passed("F5", F5, good, f"label {label}, handler {handler}, {' '.join(words)}")


def _predictor(bundle: Bundle) -> Callable[[Path], list[float]]:
    def predict(job: Path) -> list[float]:
        values: list[float] = predict_what(bundle, job).confidence.tolist()
        return values

    return predict


def _patches(table: Path) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """The labelled test rows of a patch table, at most as many as the jobs use."""
    from midog.data.patches import read_table
    from midog.data.pixels import open_pixels

    rows = read_table(table)
    rows = rows.subset((rows.column("split") == "test") & (rows.labels >= 0))
    if len(rows) < 2 * TRACK2.pages:
        raise DataError(f"{table} has {len(rows)} labelled test rows", f"at least {2 * TRACK2.pages}: --hold-out 0.2")
    # Spread over the table, so that several cases and both classes are among them.
    chosen = rows.subset(np.linspace(0, len(rows) - 1, 2 * TRACK2.pages).round().astype(int))
    return open_pixels(chosen)[:], chosen.labels


def command(proof: Proof) -> str:
    """The engine's command for one job, with every flag of the contract."""
    name = proof.engine or "docker"
    conditions = Conditions(model=None if proof.weights == "baked" else Path("BUNDLE"), memory=proof.memory)
    volumes = ["--volume", f"JOB:{TRACK2.input_dir}:ro", "--volume", f"OUT:{TRACK2.output_dir}"]
    return shlex.join(Engine(name).command("run", *contract_flags(conditions, "NAME", name), *volumes, proof.tag))
