"""Which patches an epoch draws, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

SAMPLERS = ("natural", "balanced", "domain")


def draw_epoch(
    kind: str, labels: NDArray[np.int8], domains: Sequence[str], n: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows drawn in one epoch, in order: (n,) int64 indices into `labels`.

    Args:
        kind: `natural` draws every patch once before any twice; `balanced` alternates the two classes, so that every
            batch of even size holds as many atypical as normal figures; `domain` also gives each domain an equal share
            within its class.
        labels: (m,) int8, 1 = atypical, 0 = normal.
        domains: (m,) names of domains.
        n: number of draws; the usual epoch draws m.
        rng: decides everything.

    Within a class (and domain) nothing is drawn twice before all of it was drawn once: rare figures repeat evenly.
    Balanced sampling shifts logits towards the rarer class; the blend's shift takes that out again.
    """
    if kind == "natural":
        return _take(_repeat(np.arange(len(labels)), rng), n)
    if kind not in SAMPLERS:
        raise ValueError(f"no such sampler: {kind!r}; one of {SAMPLERS}")
    names = np.asarray(domains, dtype=str)
    streams = []
    for label in (0, 1):
        rows = np.flatnonzero(labels == label)
        if not len(rows):
            raise ValueError(f"no patch of class {label} to draw from")
        groups = [rows] if kind == "balanced" else [rows[names[rows] == name] for name in np.unique(names[rows])]
        streams.append(_interleave([_repeat(group, rng) for group in groups], rng))
    first = int(rng.integers(2))
    return np.array([next(streams[(first + at) % 2]) for at in range(n)], dtype=np.int64)


def _repeat(rows: NDArray[np.int64], rng: np.random.Generator) -> Iterator[int]:
    """Endless: one random order of `rows` after another."""
    while True:
        yield from rng.permutation(rows).tolist()


def _interleave(streams: Sequence[Iterator[int]], rng: np.random.Generator) -> Iterator[int]:
    """Endless: in turn one draw of each stream, the turn's order drawn anew each time."""
    while True:
        for at in rng.permutation(len(streams)):
            yield next(streams[at])


def _take(stream: Iterator[int], n: int) -> NDArray[np.int64]:
    return np.fromiter(stream, dtype=np.int64, count=n)
