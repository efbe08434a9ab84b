"""`midog features`: features of a fold model, and what they hold of label and scanner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from midog.errors import UsageError
from midog.terminal import Json, show, wrote
from midog.train_cli import Pretrained


def features(
    what: Annotated[str, typer.Argument(help="A run, RUN:MEMBER, or a feature file (safetensors, npz, npy, csv).")],
    by: Annotated[str | None, typer.Option(help="Measure robustness against this column: scanner, tumour, …")] = None,
    label: Annotated[str, typer.Option(help="Column of the biology.")] = "label",
    case: Annotated[str, typer.Option(help="Column of the case: slide or patient.")] = "case",
    only: Annotated[
        list[str] | None, typer.Option(help="paired, index, confounder, label, clustering or drop; may be repeated.")
    ] = None,
    fold: Annotated[int, typer.Option(help="Of a run: the fold model, on the patches that it never saw.")] = 0,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write a run's features: .safetensors.")] = None,
    pretrained: Pretrained = None,
    as_json: Json = False,
) -> None:
    """Features of a fold model beside those of its frozen backbone, and their robustness with chance levels."""
    from midog import api
    from midog.report.robustness import robustness_text
    from midog.robustness.features import read_features, write_features
    from midog.robustness.report import MEASURES, report

    if by is None and out is None:
        raise UsageError("nothing to do", f"midog features {what} --by scanner, or -o features.safetensors")
    file = Path(what).is_file()
    found = read_features(what) if file else api.member_features(what, fold=fold, pretrained=pretrained)
    if out is not None:
        wrote(write_features(out, found))
    if by is not None:
        result = report(found, label, by, case, only or MEASURES)
        show(result, robustness_text(result), as_json)
