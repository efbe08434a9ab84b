"""Memory that one layer gave back serves the next one."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's malloc.h."""
LARGE = 1 << 30


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed. By default each large activation is a fresh mapping, and the kernel clears its
    pages one by one: 37 % of the processor time of small networks, measured. Elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE)
        mallopt(TRIM_THRESHOLD, LARGE)
