"""What belongs to the machine: recorded with a fold, never part of what made it."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch

from midog.errors import UsageError
from midog.models.allocator import keep_freed_memory
from midog.models.predict import pick_device, pick_precision

RESET = Path("/proc/self/clear_refs")
"""Linux forgets a process's peak when 5 is written here."""


@dataclass(frozen=True)
class Machine:
    """How this machine trains.

    Attributes:
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, float32, bf16 or fp16; auto is bf16 on a GPU that computes it, fp16 on an older one.
        threads: torch's threads; None leaves torch's choice.
        workers: background threads that augment; None is 1 on CPU and up to 8 beside a GPU, where `threads` says that
            this process has fewer processors no more than these. 0 works in the foreground.
        part: patches that go through the network at once; None is as many as memory holds. Gradients add up to the
            same batch.
        checkpointing: compute activations again in the backward pass from the start, and not only when memory asks.
        compile: let torch.compile fuse the network: minutes at first, a gain on some GPUs (`midog bench train` tells).
    """

    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    workers: int | None = None
    part: int | None = None
    checkpointing: bool = False
    compile: bool = False


@dataclass(frozen=True)
class Resources:
    """What `Machine` came to be here; `dtype` is autocast's, float32 without it."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    workers: int

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type


@contextmanager
def claim(machine: Machine) -> Iterator[Resources]:
    """Set threads and determinism for the block and put them back; torch's generators are left as they were.

    Raises: UsageError for a device, precision or number of threads that does not exist here.
    """
    device = pick_device(machine.device)
    dtype = pick_precision(device, machine.precision)
    if machine.threads is not None and machine.threads < 1:
        raise UsageError(f"--threads {machine.threads}", "at least 1")
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark, opencv = torch.backends.cudnn.benchmark, cv2.getNumThreads()
    memory: Any = torch.utils.deterministic  # torch's annotations leave the attribute out
    filling = memory.fill_uninitialized_memory
    workers = machine.workers
    if workers is None:
        workers = 1 if device.type == "cpu" else min(8, machine.threads or os.cpu_count() or 1)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            if machine.threads is not None:
                torch.set_num_threads(machine.threads)
            torch.backends.cudnn.benchmark = True  # every batch has one size
            cv2.setNumThreads(1)  # patches are small: its threads, one for each processor, only wait for each other
            if device.type == "cpu":
                keep_freed_memory()
                torch.use_deterministic_algorithms(True)
                # Filling fresh memory helps to find bugs in torch and costs a tenth of every step.
                memory.fill_uninitialized_memory = False
            yield Resources(device, dtype, torch.get_num_threads(), workers)
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
            torch.backends.cudnn.benchmark = benchmark
            cv2.setNumThreads(opencv)
            memory.fill_uninitialized_memory = filling


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` count from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif RESET.exists():
        with suppress(OSError):  # not allowed in some sandboxes: the peak is then that of the whole process so far
            RESET.write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes at most since `forget_peak`: of tensors on a GPU, of the whole process on a processor."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if RESET.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
