"""Logits of many patches, in batches and in several views; device and precision are chosen here.

A patch's logit does not depend on which patches share its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from augment.macenko import macenko_patches
from augment.reinhard import reinhard_patches
from augment.views import MACENKO, NORMALISED, apply_view
from midog.errors import UsageError
from midog.progress import steps

if TYPE_CHECKING:
    from midog.models.classifier import Classifier

PRECISIONS = ("auto", "float32", "bf16", "fp16")
RECOLOURED = {NORMALISED: reinhard_patches, MACENKO: macenko_patches}
"""Views that are made of the patches; the others are made of the network's input."""


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device to work on: `auto` is the first GPU, else the processor. Apple's GPU is used when it is named (`mps`).

    Raises: UsageError when the device is not there.
    """
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device: {name}", "auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"no such device here: {name}", f"this machine has {torch.cuda.device_count()} GPUs")
    return device


def pick_precision(device: torch.device, name: str = "auto") -> torch.dtype:
    """The dtype of autocast: bfloat16 on GPUs from compute capability 8.0, float16 on older ones, float32 elsewhere.

    Raises: UsageError for an unknown name.
    """
    if name not in PRECISIONS:
        raise UsageError(f"unknown precision: {name}", f"one of {', '.join(PRECISIONS)}")
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def pick_batch(device: torch.device) -> int:
    """Images per forward: 64, on a processor 6, which is as fast there and keeps small networks under a gigabyte."""
    return 6 if device.type == "cpu" else 64


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """torch's autocast to `dtype`; plain float32 when that is the dtype."""
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else torch.bfloat16, enabled=enabled)


def predict_logits(
    model: Classifier,
    patches: Any,
    views: Sequence[str] = ("identity",),
    device: str | torch.device = "auto",
    batch: int | None = None,
    precision: str = "auto",
    label: str = "",
) -> NDArray[np.float64]:
    """Logits of *atypical* for each patch in each view.

    Args:
        model: The classifier; it is moved to `device` and put in eval mode while this runs.
        patches: (n, 128, 128, 3) uint8 RGB, or anything with `len` that an index array turns into that (`Pixels`).
        views: Names of `augment.views`.
        device: See `pick_device`.
        batch: Images per forward, see `pick_batch`; halved when the GPU's memory is too small, down to the processor at
            last.
        precision: See `pick_precision`. Logits that are not finite are computed again in float32.
        label: Text beside the progress bar; none without.

    Returns: (n, views) float64.
    """
    device = pick_device(device)
    dtype = pick_precision(device, precision)
    batch = batch or pick_batch(device)
    logits = np.empty((len(patches), len(views)), dtype=np.float64)
    was_training = model.training
    model.to(device).eval()
    start = 0
    try:
        with steps(label, len(patches)) if label else nullcontext(lambda note: None) as step:
            while start < len(patches):
                stop = min(start + batch, len(patches))
                part = _chunk(model, np.asarray(patches[np.arange(start, stop)]), views, dtype)
                if part is None:
                    batch, dtype = _make_room(model, batch, dtype)
                    continue
                logits[start:stop] = part
                for _ in range(start, stop):
                    step("")
                start = stop
    finally:
        model.train(was_training)
    return logits


def _make_room(model: Classifier, batch: int, dtype: torch.dtype) -> tuple[int, torch.dtype]:
    """After the GPU ran out of memory: half the batch, or the processor when one image is too much."""
    torch.cuda.empty_cache()
    if batch > 1:
        return batch // 2, dtype
    model.to("cpu")
    return pick_batch(torch.device("cpu")), torch.float32


def _chunk(
    model: Classifier, chunk: NDArray[np.uint8], views: Sequence[str], dtype: torch.dtype
) -> NDArray[np.float64] | None:
    """(k, 128, 128, 3) uint8 to (k, views), or None when the GPU is out of memory. Prepared once, then turned."""
    try:
        return _logits(model, chunk, views, dtype)
    except torch.OutOfMemoryError:
        return None  # the failed forward's tensors are only freed once this frame is left


def _logits(
    model: Classifier, chunk: NDArray[np.uint8], views: Sequence[str], dtype: torch.dtype
) -> NDArray[np.float64]:
    with torch.inference_mode():
        x = model.prepare(chunk)
        columns = []
        for view in views:
            seen = model.prepare(RECOLOURED[view](chunk)) if view in RECOLOURED else apply_view(x, view)
            with autocast(x.device, dtype):
                column = model(seen).double()
            finite = torch.isfinite(column)
            if dtype != torch.float32 and not bool(finite.all()):
                column = torch.where(finite, column, model(seen).double())  # the neighbours keep theirs
            columns.append(column)
        logits: NDArray[np.float64] = torch.stack(columns, dim=1).cpu().numpy()
    return logits
