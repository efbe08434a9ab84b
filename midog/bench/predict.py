"""What `predict` costs beside the forwards it cannot do without: one backbone, several fold models, no views.

The floor is a bare loop: `network(batch)` in the same process, on the same network, device and precision, with batches
that were prepared before the clock started; once over all patches for each fold model. What it leaves out is what ours
does besides: cutting and resizing patches, reading and merging each fold model's weights, the blend.

The bundle has been asked once before, so its backbone is in memory already; the row `first call` says what that took.
Both take turns, and ratios are taken within a turn, so that other load on the machine meets both. Peak memory comes
from two further processes, of which one predicts and the other holds a single bare network and runs the same loop.

Switching takes as long as the forward of some patches; their number hardly depends on the network, because both grow
with its weights. The row `switch` says how many.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from midog.bench.stand_in import copies_bundle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from midog.models.classifier import Classifier

TURNS = 3
LIMIT = 1.05
"""Largest ratio of k fold models to k forwards over the same patches."""
SLOWEST = 1 / 0.9
"""Largest ratio of pixels-to-logits to forwards: at least 90 % of a bare loop's speed."""
SPARE = 100.0
"""Most megabytes of peak memory beyond a process with one bare network (our choice: far from a second one)."""


def measure(
    backbone: str = "vit_small_patch16_224", folds: int = 4, patches: int = 32, turns: int = TURNS
) -> list[dict[str, Any]]:
    """Rows for `midog bench predict`.

    Args:
        backbone: name of a record, or `timm/<name>`; its weights are random.
        folds: fold models on it: low-rank adapters of rank 8.
        patches: drawn patches. The limit of k fold models is meant for 32 and more.
        turns: of ours and floor, after one that is not counted.

    Returns: rows name, unit, ours, floor, ratio, limit: medians.
    """
    with tempfile.TemporaryDirectory(prefix="midog-") as scratch:
        bundle = Path(scratch) / "bundle"
        seconds = _apart(_seconds, bundle, backbone, folds, patches, turns)
        ours, bare = (_apart(process, bundle, patches) for process in (_peak_of_predict, _peak_of_bare_network))
    per_patch = median(seconds["loop"]) / patches
    switch = median(seconds["switch"])
    loops = [folds * loop for loop in seconds["loop"]]
    return [
        _compare(f"{folds} fold models, {patches} patches", seconds["predict"], loops, LIMIT),
        _compare(f"pixels to logits, {patches} patches", seconds["logits"], seconds["loop"], SLOWEST),
        _row("switch", "s", switch),
        _row("switch", "patches", switch / per_patch),
        _row("first call", "s", median(seconds["first call"])),
        _row("peak memory", "MB", ours, bare, ours / bare),
        _row("beyond one bare network", "MB", ours - bare, limit=SPARE),
    ]


def _compare(name: str, ours: Sequence[float], floor: Sequence[float], limit: float) -> dict[str, Any]:
    ratio = median(a / b for a, b in zip(ours, floor, strict=True))
    return _row(name, "s", median(ours), median(floor), ratio, limit)


def _row(
    name: str,
    unit: str,
    ours: float,
    floor: float | None = None,
    ratio: float | None = None,
    limit: float | None = None,
) -> dict[str, Any]:
    return {"name": name, "unit": unit, "ours": ours, "floor": floor, "ratio": ratio, "limit": limit}


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _seconds(folder: Path, backbone: str, folds: int, patches: int, turns: int) -> dict[str, list[float]]:
    """Make the bundle, and time it: `predict` (all fold models), `loop`, `logits` and `switch` (one each) of every
    turn; and the `first call`."""
    from midog.bundle import open_bundle
    from midog.models.predict import predict_logits
    from midog.progress import steps

    bundle, images = open_bundle(copies_bundle(folder, backbone, 1, folds, "none")), _draw(patches)
    first = _clock(lambda: bundle.predict(images))
    (inference,) = bundle.kept.values()
    files = [folder / name for name in bundle.manifest["members"][0]["folds"].values()]
    model = inference.module
    x = model.prepare(images)
    programs: Mapping[str, Callable[[], Any]] = {
        "predict": lambda: bundle.predict(images),
        "loop": lambda: _loop(model, x, folds),
        "logits": lambda: predict_logits(model, images),
        "switch": lambda: [inference.switch(file) for file in files],
    }
    many = {"loop": folds, "switch": folds}
    found: dict[str, list[float]] = {name: [] for name in programs}
    order = list(programs)
    with steps("predict", turns + 1) as advance:
        for turn in range(turns + 1):
            for name in order:
                seconds = _clock(programs[name]) / many.get(name, 1)
                found[name] += [seconds] * (turn > 0)
            order.reverse()
            advance("")
    return {**found, "first call": [first]}


def _clock(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _draw(patches: int) -> NDArray[np.uint8]:
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (patches, 128, 128, 3), dtype=np.uint8)


def _loop(model: Classifier, x: Tensor, times: int = 1) -> None:
    """The floor: forwards over all prepared patches; the logits come to the processor, as ours do."""
    import torch

    from midog.models.predict import autocast, pick_batch, pick_precision

    batch = pick_batch(x.device)
    with torch.inference_mode(), autocast(x.device, pick_precision(x.device)):
        for part in torch.split(x, batch) * times:
            model(part).cpu()


def _peak_of_predict(folder: Path, patches: int) -> float:
    from midog.bundle import open_bundle

    open_bundle(folder).predict(_draw(patches))
    return _peak()


def _peak_of_bare_network(folder: Path, patches: int) -> float:
    """One network with zeros for weights, laid out without initialisation; imports what ours imports."""
    import torch

    from midog.bundle import open_bundle
    from midog.models.build import empty_backbone
    from midog.models.classifier import Classifier
    from midog.models.network import Network
    from midog.models.predict import pick_batch, pick_device

    network = Network.from_dict(open_bundle(folder).manifest["members"][0]["network"])
    model = Classifier(network, empty_backbone(network.backbone)).requires_grad_(False).eval().to(pick_device())
    for tensor in model.state_dict().values():
        torch.nn.init.zeros_(tensor)
    images = _draw(patches)
    batch = pick_batch(pick_device())
    for start in range(0, patches, batch):
        _loop(model, model.prepare(images[start : start + batch]))
    return _peak()


def _peak() -> float:
    """Megabytes that this process held at most. Linux's own counter: getrusage goes on from the parent's peak."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
