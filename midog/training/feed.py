"""Batches on their way to the device: from pinned memory, beside the computation, one ahead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from midog.training.batches import Batch


@dataclass(frozen=True)
class Fed:
    """A batch on the device: `images` (b, 128, 128, 3) uint8 augmented, `targets` (b,) and `weights` (b,) float32."""

    images: Tensor
    targets: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, rows: slice) -> Fed:
        return Fed(self.images[rows], self.targets[rows], self.weights[rows])


def feed(batches: Iterator[Batch], device: torch.device) -> Iterator[Fed]:
    """The batches as tensors on `device`. Towards a GPU the next one travels while the last one is computed with."""
    if device.type != "cuda":
        for batch in batches:
            yield Fed(*(tensor.to(device) for tensor in _tensors(batch)))
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    coming: Fed | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            sent = Fed(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in _tensors(batch)))
        if coming is not None:
            yield coming
        coming = _arrive(sent, stream)
    if coming is not None:
        yield coming


def _tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return torch.from_numpy(batch.images), torch.from_numpy(batch.targets), torch.from_numpy(batch.weights)


def _arrive(sent: Fed, stream: torch.cuda.Stream) -> Fed:
    """Let the computing stream wait for the copy, and the allocator know that both streams use the memory."""
    computing = torch.cuda.current_stream(sent.images.device)
    computing.wait_stream(stream)
    for tensor in (sent.images, sent.targets, sent.weights):
        tensor.record_stream(computing)
    return sent
