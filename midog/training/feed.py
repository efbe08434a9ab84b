"""Batches on their way to the device: from pinned memory, beside the computation, one ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from midog.training.batches import Batch


@dataclass(frozen=True)
class Fed:
    """A batch on the device: `images` (b, 128, 128, 3) uint8 augmented, `targets` (b,) and `weights` (b,) float32.

    `extra` is what an auxiliary loss needs besides, by name.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, rows: slice) -> Fed:
        extra = {name: tensor[rows] for name, tensor in self.extra.items()}
        return Fed(self.images[rows], self.targets[rows], self.weights[rows], extra)

    def map(self, change: Callable[[Tensor], Tensor]) -> Fed:
        """Every tensor changed alike."""
        extra = {name: change(tensor) for name, tensor in self.extra.items()}
        return Fed(change(self.images), change(self.targets), change(self.weights), extra)


def feed(batches: Iterator[Batch], device: torch.device) -> Iterator[Fed]:
    """The batches as tensors on `device`. Towards a GPU the next one travels while the last one is computed with."""
    if device.type != "cuda":
        for batch in batches:
            yield _tensors(batch).map(lambda tensor: tensor.to(device))
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    coming: Fed | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            sent = _tensors(batch).map(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
        if coming is not None:
            yield coming
        coming = _arrive(sent, stream)
    if coming is not None:
        yield coming


def _tensors(batch: Batch) -> Fed:
    extra = {name: torch.from_numpy(array) for name, array in batch.extra.items()}
    images, targets, weights = map(torch.from_numpy, (batch.images, batch.targets, batch.weights))
    return Fed(images, targets, weights, extra)


def _arrive(sent: Fed, stream: torch.cuda.Stream) -> Fed:
    """Let the computing stream wait for the copy, and the allocator know that both streams use the memory."""
    computing = torch.cuda.current_stream(sent.images.device)
    computing.wait_stream(stream)
    for tensor in (sent.images, sent.targets, sent.weights, *sent.extra.values()):
        tensor.record_stream(computing)
    return sent
