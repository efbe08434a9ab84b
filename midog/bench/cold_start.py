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
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from midog.errors import CheckFailed
from midog.progress import steps

PAIRS = 5
LIMIT = 1.3
"""Largest ratio of wall times, entry point to floor."""
SPARE = 1000.0
"""Most megabytes of peak memory beyond the largest backbone, as float32."""
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
                bundle = pool.submit(make_bundle, Path(scratch) / "bundle").result()
        rows = compare(bundle, job or _job(Path(scratch)), pairs)
    return [*rows, *_starts(pairs), *_imports(STARTS["our imports"])]


def compare(bundle: Path, job: Path, pairs: int = PAIRS, warm: bool = True) -> list[dict[str, Any]]:
    """The rows that hold entry point and floor side by side; see `measure`. `warm` runs both once before."""
    plans = _plans(bundle)
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


def _plans(bundle: Path) -> list[dict[str, Any]]:
    """What the floor does for each member of the operating point `full`; `megabytes` is its backbone in float32."""
    from augment.views import VIEW_SETS
    from ensemble.blend import read_blend
    from midog.archive import read_manifest
    from submission.challenge import TRACK2

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
                "pages": TRACK2.pages,
                "forwards": len(folds) * len(VIEW_SETS[point.views]),
                "megabytes": max([*sizes, manifest["files"][folds[0]]["bytes"]]) / 1e6,
            }
        )
    return plans


def _job(scratch: Path) -> Path:
    """The challenge's own job where the data are at hand, else drawn pages."""
    from submission.challenge import TRACK2
    from submission.stack import write_job

    real = Path(os.environ.get("MIDOG_DATA", "")) / "job"
    if "MIDOG_DATA" in os.environ and real.is_dir():
        return real
    import numpy as np

    size = (TRACK2.pages, TRACK2.page_size, TRACK2.page_size, 3)
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


def make_bundle(folder: Path, recipe: str = "demo", folds: int = 2) -> Path:
    """An unpacked bundle with the networks of a recipe, random weights and four views; imports torch. Returns it."""
    from midog.archive import manifest_bytes
    from midog.files import sha256_file, write_bytes, write_json
    from midog.recipe import load_recipe
    from midog.training.member import network_of

    entries: list[dict[str, Any]] = []
    loaded = load_recipe(recipe, ["each.pretrained=random"])
    for name, member in loaded.members.items():
        network = network_of(member)
        backbone, files = _write_member(folder, name, network, folds)
        entries.append({"name": name, "backbone": backbone, "folds": files, "network": network.to_dict()})
    names = [entry["name"] for entry in entries]
    point: dict[str, Any] = {
        "name": "full",
        "members": names,
        "weights": [1 / len(names)] * len(names),
        "views": "rot4",
    }
    point |= {"shift": 0.0, "temperature": 1.0, "threshold": 0.5}
    members = [
        {
            "name": entry["name"],
            "run": "",
            "member": entry["name"],
            "network": entry["network"],
            "folds": {k: {"path": file, "sha256": sha256_file(folder / file)} for k, file in entry["folds"].items()},
        }
        for entry in entries
    ]
    write_json(folder / "blend.json", {"members": members, "points": {"full": point}, "prevalence": 0.2})
    stored = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    listed = {name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for name, file in stored.items()}
    content = {"midog": "0", "members": entries, "files": listed, "training": {"patches": 0, "pixels": []}}
    write_bytes(folder / "manifest.json", manifest_bytes(content))
    return folder


def _write_member(folder: Path, name: str, network: Any, folds: int) -> tuple[str | None, dict[str, str]]:
    """Fold models as training leaves them, everything trained being moved; the backbone's file where one is needed."""
    import torch

    from midog.models.classifier import BACKBONE, build_classifier, pretrained_state, round_adapters, save_fold
    from midog.models.weights import TensorFile, write_tensors

    files = {}
    for k in range(folds):
        classifier = build_classifier(network)
        with torch.no_grad():
            for key, tensor in classifier.backbone.state_dict().items():
                if key in classifier.pretrained:
                    tensor.add_(tensor.new_tensor(1) if not tensor.is_floating_point() else 0.01)
        round_adapters(classifier)
        files[str(k)] = f"members/{name}/fold_{k}.safetensors"
        save_fold(classifier, folder / files[str(k)])
    held = TensorFile(folder / files["0"]).names
    left = {key: value for key, value in pretrained_state(network).items() if BACKBONE + key not in held}
    if not left:
        return None, files
    backbone = f"backbones/{name}.safetensors"
    write_tensors(folder / backbone, left, {"content": "backbone"})
    return backbone, files
