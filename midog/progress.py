"""Progress of long work on stderr; silent where stderr is no terminal (containers, CI, pipes)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


def track(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items`, drawing a bar labelled `label` on a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as bar

    yield from bar(items, label, total=total, console=Console(stderr=True), transient=True)


@contextmanager
def steps(label: str, total: int) -> Iterator[Callable[[str], None]]:
    """Yield a function that advances the bar by one step and shows its argument beside the label."""
    if not sys.stderr.isatty():
        yield lambda note: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda note: progress.update(task, advance=1, description=f"{label} {note}".rstrip())
