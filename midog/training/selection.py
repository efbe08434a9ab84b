"""Choosing the epoch without the cases it will be scored on: a tenth of the fold's training cases decides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from midog.data.folds import hold_out
from midog.data.patches import PatchTable
from midog.training.optimise import changing_tensors

INNER_SHARE = 0.1
PLATEAU_PATIENCE = 3
PLATEAU_FACTOR = 0.5
IMPROVEMENT = 1e-4
"""Relative improvement that counts on a plateau. These three are those of the AMi-Br benchmark (arXiv 2506.21444)."""


def inner_mask(side: PatchTable, seed: int) -> NDArray[np.bool_]:
    """(m,) True for the patches of about a tenth of the cases, balanced on label within domain.

    `side` is the training side of a fold; the fold's own cases are not in it, so nothing is chosen on them.
    """
    held = hold_out(side, INNER_SHARE, seed)
    return np.array([patch.split == "test" for patch in held], dtype=bool)


class Best:
    """The weights of the epoch with the lowest inner loss so far, and every inner loss up to now."""

    def __init__(self, module: nn.Module) -> None:
        self.losses: list[float] = []
        self.tensors: dict[str, Tensor] = {name: t.clone() for name, t in changing_tensors(module).items()}

    @property
    def epoch(self) -> int:
        """Epoch (from 0) of the lowest loss, the first of equals."""
        return int(np.argmin(self.losses))

    def add(self, inner_loss: float, module: nn.Module) -> None:
        self.losses.append(inner_loss)
        if self.epoch == len(self.losses) - 1:
            for name, tensor in changing_tensors(module).items():
                self.tensors[name].copy_(tensor)

    @torch.no_grad()
    def apply(self, module: nn.Module) -> None:
        for name, tensor in changing_tensors(module).items():
            tensor.copy_(self.tensors[name])

    def stop(self, patience: int) -> bool:
        """True when the lowest loss is `patience` or more epochs old; never where patience is 0."""
        return bool(patience and self.losses and len(self.losses) - 1 - self.epoch >= patience)


def plateau_factor(losses: Sequence[float]) -> float:
    """Factor on the learning rate after these losses: halved whenever more than three in a row bring nothing."""
    factor, lowest, idle = 1.0, float("inf"), 0
    for value in losses:
        if value < lowest * (1 - IMPROVEMENT):
            lowest, idle = value, 0
        else:
            idle += 1
        if idle > PLATEAU_PATIENCE:
            factor, idle = factor * PLATEAU_FACTOR, 0
    return factor
