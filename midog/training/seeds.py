"""Seeds that depend on what is done, never on who does it or when."""

from __future__ import annotations

import hashlib
import json

import numpy as np


def seed_of(*parts: int | str) -> int:
    """A seed in [0, 2^63) from a tuple such as (run seed, member, fold, epoch, "order")."""
    digest = hashlib.sha256(json.dumps(parts).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_of(*parts: int | str) -> np.random.Generator:
    return np.random.default_rng(seed_of(*parts))
