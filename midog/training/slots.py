"""Folds side by side on this machine: one slot for each GPU that is named, the next fold when a slot is free."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from midog.errors import UsageError
from midog.training.jobs import ATTEMPTS, Job, Tally, epochs_bar, explain, give_up, ready, settle, start

POLL = 0.2
"""Seconds between two looks at the processes."""


def choose_gpus(gpus: Sequence[int] | None) -> tuple[int, ...]:
    """The GPUs to train on, as torch counts the visible ones; none where there is none. One named twice stays twice.

    Raises: UsageError for one that does not exist.
    """
    import torch

    count = torch.cuda.device_count()
    wrong = [gpu for gpu in gpus or () if not 0 <= gpu < count]
    if wrong:
        here = (
            f"this machine shows {count}: {', '.join(map(str, range(count)))}" if count else "this machine shows none"
        )
        fix = "leave --gpus out to use every GPU" if count else "leave --gpus out: training runs on the processor"
        raise UsageError(f"--gpus: there is no GPU {', '.join(map(str, wrong))}; {here}", fix)
    return tuple(range(count)) if gpus is None else tuple(gpus)


def gpu_slots(gpus: Sequence[int]) -> list[dict[str, str]]:
    """The environment in which a process sees one GPU, for each of them; those that are hidden here stay hidden."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return [{"CUDA_VISIBLE_DEVICES": visible[gpu] if visible else str(gpu)} for gpu in gpus]


def train_in_slots(
    jobs: Sequence[Job],
    slots: Sequence[Mapping[str, str]],
    command: Callable[[Job], Sequence[str]],
    tally_of: Callable[[Job], Tally],
) -> None:
    """Run jobs as processes, as many at once as there are slots; the next starts when a slot is free. One whose teacher
    is among `jobs` waits until that has ended.

    A process that dies without a result is started again, up to ATTEMPTS times: it goes on after its last whole epoch.
    When this process is interrupted or terminated, it ends its children first.

    Args:
        slots: the environment that each slot adds to its processes, such as {"CUDA_VISIBLE_DEVICES": "1"}.
        command: what to run for a job.
        tally_of: where a job's end is counted.
    """
    waiting, free, attempts = deque(jobs), list(slots), Counter[Job]()
    running: dict[Job, tuple[subprocess.Popen[bytes], Mapping[str, str]]] = {}
    with _ending(running), epochs_bar(jobs) as show:
        while waiting or running:
            while free and (able := ready(waiting, running)):
                job, slot = able[0], free.pop(0)
                waiting.remove(job)
                attempts[job] += 1
                running[job] = start(job, command(job), slot), slot
            time.sleep(POLL)
            show(f"{len(running)} running, {len(waiting)} waiting")
            for job, (process, slot) in list(running.items()):
                if (code := process.poll()) is None:
                    continue
                del running[job]
                free.append(slot)
                explain(job, code)
                tally = tally_of(job)
                how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
                if settle(job, tally):
                    continue
                if attempts[job] < ATTEMPTS:
                    tally.report(f"{job}: its process ended {how}; it is started again")
                    waiting.append(job)
                else:
                    give_up(job, tally, attempts[job], how)


@contextmanager
def _ending(running: Mapping[Job, tuple[subprocess.Popen[bytes], Mapping[str, str]]]) -> Iterator[None]:
    """End the children when the block ends, also at SIGTERM, which else would leave them behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, interrupt) if main else None
    try:
        yield
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()
        if main:
            signal.signal(signal.SIGTERM, before)
