"""Feature vectors of many patches: pooled, as a linear head is given them, and those that a head makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from midog.models.predict import autocast, pick_device, pick_precision
from midog.progress import steps

if TYPE_CHECKING:
    from midog.models.classifier import Classifier

BATCH = 16
"""Images per forward: small, so that the largest backbone fits beside another."""


def pooled_features(
    model: Classifier, patches: Any, device: str | torch.device = "auto", precision: str = "auto", label: str = ""
) -> NDArray[np.float32]:
    """Pooled features of each patch, before the head.

    Args:
        model: the classifier; it is moved to `device` and put in eval mode while this runs.
        patches: (n, 128, 128, 3) uint8 RGB, or anything with `len` that an index array turns into that (`Pixels`).
        device, precision: see `predict.pick_device` and `predict.pick_precision`.
        label: text beside the progress bar.

    Returns: (n, width) float32.
    """
    return _of_all(model, patches, model.features, device, precision, label)


def head_features(
    model: Classifier, patches: Any, device: str | torch.device = "auto", precision: str = "auto", label: str = ""
) -> NDArray[np.float32]:
    """The features that the head reads its logit from (`HeadModule.vector`); as `pooled_features` in all else."""
    return _of_all(model, patches, lambda x: model.head.vector(model.look(x)), device, precision, label)


def _of_all(
    model: Classifier,
    patches: Any,
    ask: Callable[[Tensor], Tensor],
    device: str | torch.device,
    precision: str,
    label: str,
) -> NDArray[np.float32]:
    device = pick_device(device)
    dtype = pick_precision(device, precision)
    was_training = model.training
    model.to(device).eval()
    parts = []
    try:
        with steps(label, len(patches)) as step, torch.inference_mode():
            for start in range(0, len(patches), BATCH):
                x = model.prepare(np.asarray(patches[np.arange(start, min(start + BATCH, len(patches)))]))
                with autocast(x.device, dtype):
                    found = ask(x)
                parts.append(found.float().cpu().numpy())
                for _ in range(len(x)):
                    step("")
    finally:
        model.train(was_training)
    return np.concatenate(parts)
