"""From nothing to an answered job: the container's entry point against the least that the same networks can take.

The floor is a fresh process that imports torch and timm, reads the bytes of the operating point's weights, and runs
each of its networks forward on the same number of images, once for each fold model and view. It neither checks nor
decodes what it read: its networks are laid out without initialisation and keep zeros for weights. It reads no job,
prepares no pixels and writes no answer.

Both start with the files in the page cache and compiled bytecode. They take turns, and ratios are taken within a turn,
so that other load on the machine meets both. Nothing heavy is imported in this process: a child's peak memory is
counted from its parent's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from midog.bench.stand_in import copies_bundle, recipe_bundle
from midog.errors import CheckFailed
from midog.progress import steps

PAIRS = 5
LIMIT = 1.3
"""Largest ratio of wall times, entry point to floor."""
SPARE = 1000.0
"""Most megabytes of peak memory beyond the largest backbone, as float32."""
HALF = 1.05
"""Largest ratio of a bundle's bytes to its backbones' in half precision."""
WHOLE = 1.05
"""Largest ratio of peak memory to one network's, its adapters and its activations; what is left is our imports."""
TOP = 5

FLOOR = """
import json, sys, torch, timm, timm.layers
from pathlib import Path
for plan in json.loads(sys.argv[1]):
    held = [Path(file).read_bytes() for file in plan["files"]]
    named = {key: getattr(timm.layers, str(value), None) or getattr(torch.nn, str(value), value)
             if key.endswith("_layer") else value for key, value in plan["kwargs"].items()}
    with torch.device("meta"):
        network = timm.create_model(plan["timm"], num_classes=0, **named)
    network = network.to_empty(device="cpu").eval().requires_grad_(False)
    for tensor in network.state_dict().values():
        tensor.zero_()
    form = torch.contiguous_format if plan["patch"] else torch.channels_last
    network, x = network.to(memory_format=form), torch.rand(plan["pages"], 3, plan["size"], plan["size"])
    with torch.inference_mode():
        for _ in range(plan["forwards"]):
            network.forward_features(x.contiguous(memory_format=form))
"""

STARTS = {
    "python": "pass",
    "import torch": "import torch",
    "import timm": "import torch, timm",
    "our imports": "import submission.inference, submission.model, midog.bundle; submission.model.import_heavy()\n"
    "import torch, timm",
}
"""Programs that import more and more; the difference to the one before is what a part costs."""


@dataclass(frozen=True)
class Spent:
    """What a process took: wall and processor seconds, megabytes at its peak."""

    wall: float
    processor: float
    peak: float


def measure(bundle: Path | None = None, job: Path | None = None, pairs: int = PAIRS) -> list[dict[str, Any]]:
    """Rows for `midog bench cold-start`.

    Args:
        bundle: an unpacked bundle; None makes one like the demo's, with random weights.
        job: a challenge job; None is `MIDOG_DATA`'s, else 16 drawn pages.
        pairs: turns of entry point and floor, after one that is not counted.

    Returns: rows name, unit, ours, floor, ratio, limit: medians; an import's row has the seconds it adds.

    Raises: CheckFailed when a process fails.
    """
    with tempfile.TemporaryDirectory(prefix="midog-") as scratch:
        if bundle is None:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                bundle = pool.submit(recipe_bundle, Path(scratch) / "bundle").result()
        rows = compare(bundle, job or _job(Path(scratch)), pairs)
    return [*rows, *_starts(pairs), *_imports(STARTS["our imports"])]


def measure_copies(
    backbone: str, copies: int = 4, folds: int = 5, pages: int = 2, views: str = "none"
) -> list[dict[str, Any]]:
    """Rows for `midog bench cold-start --backbone`: a bundle of several backbones of one size, many fold models each.

    Each process runs once: with ViT-H, four times five fold models and two pages it takes minutes, with sixteen pages
    most of an hour.

    Args:
        backbone: a record's name; its copies have random weights of their own.
        copies: members, each on a backbone of its own.
        folds: fold models of each: low-rank adapters of rank 8.
        pages: of the job; they cost time and activations, not weights.
        views: looks at each page.

    Returns: rows as `measure`: the bundle's size against its backbones in half precision, then entry point against
    floor, and its peak against that of a process with one such network alone, plus one fold model's file.

    Raises: CheckFailed when a process fails.
    """
    with tempfile.TemporaryDirectory(prefix="midog-") as scratch:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            folder = pool.submit(copies_bundle, Path(scratch) / "bundle", backbone, copies, folds, views).result()
        job = _drawn_job(Path(scratch), pages)
        rows = compare(folder, job, 1, warm=False)
        peak = next(row["ours"] for row in rows if row["name"] == "peak memory")
        return [_size(folder), *rows, _whole(folder, job, peak)]


def compare(bundle: Path, job: Path, pairs: int = PAIRS, warm: bool = True) -> list[dict[str, Any]]:
    """The rows that hold entry point and floor side by side; see `measure`. `warm` runs both once before."""
    plans = _plans(bundle, job)
    with tempfile.TemporaryDirectory(prefix="midog-") as output:
        programs = {"ours": _entry(bundle, job, Path(output)), "floor": _python(FLOOR, json.dumps(plans))}
        turns = _turns(programs, pairs, warm)

    def row(name: str, unit: str, what: str, limit: float | None) -> dict[str, Any]:
        ours, floor = ([float(getattr(turn[who], what)) for turn in turns] for who in ("ours", "floor"))
        ratio = median(a / b for a, b in zip(ours, floor, strict=True))
        return _row(name, unit, median(ours), median(floor), ratio, limit)

    peak, largest = row("peak memory", "MB", "peak", None), max(plan["megabytes"] for plan in plans)
    return [
        row("wall time", "s", "wall", LIMIT),
        row("processor time", "s", "processor", None),
        peak,
        _row("beyond the largest backbone", "MB", peak["ours"] - largest, peak["floor"] - largest, None, SPARE),
    ]


def _size(bundle: Path) -> dict[str, Any]:
    """The bundle's bytes against those of its backbones' parameters in half precision."""
    from midog.archive import read_manifest

    backbones = {entry["backbone"] for entry in read_manifest(bundle)["members"]} - {None}
    half = sum(2 * _numbers(bundle / name) for name in backbones) / 1e6
    whole = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) / 1e6
    return _row(f"bundle against {len(backbones)} half backbones", "MB", whole, half, whole / half, HALF)


def _numbers(file: Path) -> int:
    """How many numbers a safetensors file holds, whatever their precision: by its header alone."""
    with file.open("rb") as content:
        header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
    return sum(prod(about["shape"]) for name, about in header.items() if name != "__metadata__")


def _whole(bundle: Path, job: Path, ours: float) -> dict[str, Any]:
    """Our peak against that of a process with the largest network alone, run once on the job, and one fold's file."""
    plan = max(_plans(bundle, job), key=lambda plan: float(plan["megabytes"]))
    fold = Path(plan["files"][-1]).stat().st_size / 1e6
    alone = _run(_python(FLOOR, json.dumps([{**plan, "files": [], "forwards": 1}]))).peak + fold
    return _row("peak against one network and adapters", "MB", ours, alone, ours / alone, WHOLE)


def _starts(pairs: int) -> list[dict[str, Any]]:
    turns, rows, before = _turns({name: _python(code) for name, code in STARTS.items()}, pairs), [], ""
    for name in STARTS:
        added = [turn[name].wall - (turn[before].wall if before else 0.0) for turn in turns]
        rows.append(_row(name, "s", median(added)))
        before = name
    return rows


def _row(
    name: str,
    unit: str,
    ours: float,
    floor: float | None = None,
    ratio: float | None = None,
    limit: float | None = None,
) -> dict[str, Any]:
    return {"name": name, "unit": unit, "ours": ours, "floor": floor, "ratio": ratio, "limit": limit}


def _turns(programs: Mapping[str, Sequence[str]], pairs: int, warm: bool = True) -> list[dict[str, Spent]]:
    """Run the programs in turn, every other time backwards; the turn that warms up is left out."""
    turns, order = [], list(programs)
    with steps("cold start", pairs + warm) as advance:
        for _ in range(pairs + warm):
            turns.append({name: _run(programs[name]) for name in order})
            order.reverse()
            advance("")
    return turns[warm:]


def _run(command: Sequence[str]) -> Spent:
    """Run a program to its end. Raises: CheckFailed with its last line when it fails."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MIDOG_")}
    with tempfile.TemporaryFile() as streams:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=streams, stderr=streams, env=variables)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            streams.seek(0)
            said = streams.read().decode("utf-8", "replace").splitlines()
            raise CheckFailed(f"a measured process ended with status {process.returncode}", "", said[-3:])
    unit = 1 if sys.platform == "darwin" else 1024
    return Spent(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6)


def _python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def _entry(bundle: Path, job: Path, output: Path) -> list[str]:
    spec = find_spec("submission.inference")
    assert spec is not None and spec.origin is not None
    folders = ["--input", str(job), "--output", str(output), "--model", str(bundle)]
    return [sys.executable, spec.origin, "--api", "exec", *folders]


def _plans(bundle: Path, job: Path) -> list[dict[str, Any]]:
    """What the floor does for each member of the operating point `full`; `megabytes` is its backbone in float32."""
    from augment.views import VIEW_SETS
    from ensemble.blend import read_blend
    from midog.archive import read_manifest
    from submission.stack import read_job

    pages = len(read_job(job))
    manifest, point = read_manifest(bundle), read_blend(bundle).point("full")
    entries = {entry["name"]: entry for entry in manifest["members"]}
    plans = []
    for entry in (entries[name] for name in point.members):
        record, image, folds = entry["network"]["backbone"], entry["network"]["image"], list(entry["folds"].values())
        shared = [entry["backbone"]] if entry["backbone"] else []
        sizes = [2 * manifest["files"][name]["bytes"] for name in shared]  # float16 in the file
        plans.append(
            {
                "files": [str(bundle / name) for name in (*shared, *folds)],
                "timm": record["timm"],
                "kwargs": record["timm_kwargs"],
                "patch": record["patch"],
                "size": record["input_size"] if image["size"] == "native" else image["size"],
                "pages": pages,
                "forwards": len(folds) * len(VIEW_SETS[point.views]),
                "megabytes": max([*sizes, manifest["files"][folds[0]]["bytes"]]) / 1e6,
            }
        )
    return plans


def _job(scratch: Path) -> Path:
    """The challenge's own job where the data are at hand, else drawn pages."""
    from submission.challenge import TRACK2

    real = Path(os.environ.get("MIDOG_DATA", "")) / "job"
    return real if "MIDOG_DATA" in os.environ and real.is_dir() else _drawn_job(scratch, TRACK2.pages)


def _drawn_job(scratch: Path, pages: int) -> Path:
    import numpy as np

    from submission.challenge import TRACK2
    from submission.stack import write_job

    size = (pages, TRACK2.page_size, TRACK2.page_size, 3)
    return write_job(scratch / "job", list(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)))


def _imports(code: str) -> list[dict[str, Any]]:
    """The packages that take longest to import, each without what it imports from others."""
    command = [sys.executable, "-X", "importtime", "-c", code]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    seconds: dict[str, float] = {}
    for line in told.splitlines():
        own, _, name = (part.strip() for part in (line.removeprefix("import time:") + "||").split("|")[:3])
        if line.startswith("import time:") and own.isdigit():
            depth = 2 if name.startswith(("torch.", "timm.")) else 1
            package = ".".join(name.split(".")[:depth])
            seconds[package] = seconds.get(package, 0.0) + int(own) / 1e6
    longest = sorted(seconds, key=lambda package: -seconds[package])[:TOP]
    return [_row(f"inside: {package}", "s", seconds[package]) for package in longest]
