"""`midog audit`: the battery on a bundle, a blend or a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from midog.errors import UsageError
from midog.terminal import Json, note, show, wrote
from midog.train_cli import Pretrained


def audit(
    source: Annotated[str, typer.Argument(help="A bundle (archive, folder, `default`), a blend, or a run.")],
    patches: Annotated[Path, typer.Argument(help="A patch table with labels.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for parts/, audit.json and audit.html.")],
    only: Annotated[list[str] | None, typer.Option(help="Only this part (repeatable); small_cnn only so.")] = None,
    split: Annotated[str | None, typer.Option(help="Only this split of the table: train or test.")] = None,
    limit: Annotated[
        int, typer.Option(help="Patches in curves; five times as many where each is asked once; 0: all.")
    ] = 300,
    use: Annotated[str | None, typer.Option(help="Operating point; default: fast, the cheapest.")] = None,
    pretrained: Pretrained = None,
    as_json: Json = False,
) -> None:
    """Baselines, symmetry, scale, corruption, domains, calibration, attacks, cost: a page of figures.

    A run or blend is answered out of fold: each fold model for what it never saw. The same command continues after a
    stop; parts whose inputs did not change are not repeated. Parts that train (small_cnn, minutes) run where --only
    names them, and not otherwise.
    """
    from midog.audit.battery import AUDIT_FILE, PAGE_FILE
    from midog.audit.battery import audit as run_battery
    from midog.audit.measure import Settings
    from midog.models.allocator import keep_freed_memory

    if source.endswith(".csv"):
        raise UsageError("the arguments are swapped", f"midog audit {patches} {source} -o {out}")
    settings = Settings(limit=limit)
    keep_freed_memory()
    found = run_battery(source, patches, out, only or (), split, use, pretrained, settings, say=note)
    show(found.to_dict(), found.text(), as_json)
    wrote(out / AUDIT_FILE)
    wrote(out / PAGE_FILE)
