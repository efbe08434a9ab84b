"""From the order of an epoch to augmented batches, made in the background and always the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from augment.policies import sample_rng

AHEAD = 2
"""Batches prepared ahead per worker."""

Augmentation = Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]


class Images(Protocol):
    """(n, 128, 128, 3) uint8 patches that an index array reads: `midog.data.pixels.Pixels` or an array."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.uint8]: ...


class Pairing(Protocol):
    """What of a batch an auxiliary loss needs: `drawn` training patches, their augmented `images`, their generators."""

    def __call__(
        self, drawn: NDArray[np.int64], images: NDArray[np.uint8], rngs: Sequence[np.random.Generator]
    ) -> dict[str, NDArray[Any]]: ...


@dataclass(frozen=True)
class Batch:
    """`images` (b, 128, 128, 3) uint8 augmented, `targets` (b,) and `weights` (b,) float32.

    `extra` holds what an auxiliary loss needs besides, by name, (b, …) each (`midog.training.pairing`); else nothing.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    extra: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Samples:
    """The training patches of one fold: images, targets, loss weights and each patch's augmentation."""

    images: Images
    rows: NDArray[np.int64]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    augmentations: Sequence[Augmentation]

    def batch(
        self, drawn: NDArray[np.int64], rngs: Sequence[np.random.Generator], pairing: Pairing | None = None
    ) -> Batch:
        """Augmented patches `drawn` (indices into this fold's training patches), each with its own generator."""
        images = np.array(self.images[self.rows[drawn]], dtype=np.uint8)
        for at, (row, rng) in enumerate(zip(drawn, rngs, strict=True)):
            images[at] = self.augmentations[row](images[at], rng)
        extra = pairing(drawn, images, rngs) if pairing is not None else {}
        return Batch(images, self.targets[drawn], self.weights[drawn], extra)


def steps_per_epoch(n: int, batch: int) -> int:
    """Full batches in `n` draws; one smaller batch where `n` is below `batch`. The rest is left to the next epoch."""
    return max(1, n // batch)


def epoch_batches(
    samples: Samples,
    order: NDArray[np.int64],
    size: int,
    key: tuple[int, str, int, int],
    workers: int = 1,
    pairing: Pairing | None = None,
) -> Iterator[Batch]:
    """Batches of one epoch. `key` is (run seed, member, fold, epoch); the same key gives the same bytes.

    Each patch's generator comes from `key` and its position in `order`, so it does not matter which worker makes it,
    and a patch drawn twice is augmented twice differently.
    """

    def make(start: int) -> Batch:
        drawn = order[start : start + size]
        return samples.batch(drawn, [sample_rng(*key, start + at) for at in range(len(drawn))], pairing)

    starts = [step * size for step in range(steps_per_epoch(len(order), size))]
    if workers == 0:
        yield from map(make, starts)
        return
    # Leaving the block cancels what is not begun: Ctrl-C waits for at most one batch per worker.
    pool = ThreadPoolExecutor(workers, thread_name_prefix="augment")
    try:
        waiting: deque[Future[Batch]] = deque()
        for start in starts:
            waiting.append(pool.submit(make, start))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
