"""`midog features`: features of a fold model, and what they hold of label and scanner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from midog.errors import UsageError
from midog.terminal import Json, show, wrote
from midog.train_cli import Pretrained


def features(
    what: Annotated[
        list[str],
        typer.Argument(
            help="A run, RUN:MEMBER or a feature file (safetensors, npz, npy, csv); a grid or several runs."
        ),
    ],
    by: Annotated[str | None, typer.Option(help="Measure robustness against this column: scanner, tumour, …")] = None,
    label: Annotated[str, typer.Option(help="Column of the biology.")] = "label",
    case: Annotated[str, typer.Option(help="Column of the case: slide or patient.")] = "case",
    only: Annotated[
        list[str] | None, typer.Option(help="paired, index, confounder, label, clustering or drop; may be repeated.")
    ] = None,
    fold: Annotated[
        int | None,
        typer.Option(help="Of a run: the fold model, on what it never saw. The first; of several runs, all."),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write a run's features: .safetensors.")] = None,
    pretrained: Pretrained = None,
    as_json: Json = False,
) -> None:
    """Features of a fold model beside those of its frozen backbone, and their robustness with chance levels.

    Of several runs: the robustness index of what each one's head reads, and its change against the first.
    """
    from midog import api
    from midog.report.robustness import changes_text, robustness_text
    from midog.robustness.features import read_features, write_features
    from midog.robustness.report import MEASURES, report

    what = [run for source in what for run in _runs(source)]
    if len(what) > 1:
        if by is None or out is not None or only or (label, case) != ("label", "case"):
            fix = f"midog features {' '.join(what)} --by scanner"
            raise UsageError("several runs are compared by one column, and nothing else", fix)
        changes = api.compare_features(what, by, fold, pretrained)
        show({name: change.to_dict() for name, change in changes.items()}, changes_text(changes), as_json)
        return
    source = what[0]
    if by is None and out is None:
        raise UsageError("nothing to do", f"midog features {source} --by scanner, or -o features.safetensors")
    file = Path(source).is_file()
    found = read_features(source) if file else api.member_features(source, fold=fold or 0, pretrained=pretrained)
    if out is not None:
        wrote(write_features(out, found))
    if by is not None:
        result = report(found, label, by, case, only or MEASURES)
        show(result, robustness_text(result), as_json)


def _runs(source: str) -> list[str]:
    """A grid's folder as its runs, those of the baseline first; anything else as it is."""
    from midog.grid import read_grid

    grid = read_grid(Path(source)) if Path(source).is_dir() else None
    return [source] if grid is None else [str(Path(source) / run.name) for run in grid.runs]
