"""`midog blend` and `midog compare`: what stored out-of-fold logits answer without training."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from midog.errors import UsageError
from midog.terminal import Json, show, wrote


class By(str, Enum):
    """What a result can be split by."""

    domain = "domain"
    tumour = "tumour"
    scanner = "scanner"
    laboratory = "laboratory"


def blend(
    runs: Annotated[list[str], typer.Argument(help="Runs, or members of runs as RUN:MEMBER.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Blend folder; default: blends/<run>.")] = None,
    kind: Annotated[str | None, typer.Option(help="tuned, equal or stack.")] = None,
    trials: Annotated[int | None, typer.Option(help="Optuna trials.")] = None,
    views: Annotated[
        str | None,
        typer.Option(help="none, rot4, d4, stain, d4_stain, macenko or d4_macenko: views averaged for each patch."),
    ] = None,
    threshold: Annotated[str | None, typer.Option(help="pooled, or across: one that serves each domain.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search and of the cross-fitting.")] = None,
    as_json: Json = False,
) -> None:
    """Tune weights, calibration and threshold on out-of-fold logits, every score cross-fitted by case."""
    from ensemble.oof import split_spec
    from ensemble.thresholds import threshold_content
    from midog import api
    from midog.report.text import text_table
    from midog.report.thresholds import threshold_text

    folder = out or Path("blends") / split_spec(runs[0])[0].name
    result = api.blend_runs(*runs, folder=folder, kind=kind, trials=trials, views=views, threshold=threshold, seed=seed)
    written = result.write(folder)
    texts = text_table([_short_row(row) for row in result.table(by_domain=False)]), threshold_text(result.thresholds)
    content = {"rows": result.table(), "thresholds": threshold_content(result.thresholds)}
    show(content, "\n\n".join(texts), as_json)
    wrote(written, next_command=f"midog bundle {folder} -o model.tar.gz")


def compare(
    results: Annotated[
        list[str], typer.Argument(help="Two runs, RUN:MEMBER, blends or prediction tables; or GRID or GRID:MEMBER.")
    ],
    by: Annotated[By | None, typer.Option(help="Also within each of these.")] = None,
    truth: Annotated[Path | None, typer.Option(help="Patch table with labels, for prediction tables.")] = None,
    fold: Annotated[
        list[str] | None, typer.Option(help="Of a grid's runs only this fold (repeatable), where others are untrained.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Paired case-bootstrap: which differences are noise. Runs are scored with one view, blends with their own.

    Of the runs that `midog train --vary` made (their folder, or more than two of them): what each varied key is worth,
    averaged over the other keys and the seeds, with intervals over cases and seeds.
    """
    from ensemble.compare import ONE_TRAINING, ONE_TRAINING_MEANS
    from ensemble.oof import split_spec
    from midog import api
    from midog.grid import is_grid
    from midog.report.ablation import ablation_text
    from midog.report.text import text_table

    group = by.value if by else None
    if len(results) > 2 or any(is_grid(split_spec(name)[0]) for name in results):
        if truth is not None:
            raise UsageError("--truth is for two prediction tables", "leave it out: runs know what is true")
        found = api.compare_grid(*results, by=group, folds=fold)
        show(found.to_dict(), ablation_text(found), as_json)
        return
    if fold is not None:
        raise UsageError("--fold is for the runs of a grid", "leave it out: two results share what they share")
    if len(results) < 2:
        raise UsageError(f"{results[0]} and what?", f"midog compare {results[0]} ANOTHER, or the folder of a grid")
    a, b = results
    comparison = api.compare_results(a, b, by=group, truth=truth)
    says = f"A is {comparison.a}, B is {comparison.b}: {comparison.verdict} (the bootstrap drew {comparison.drawn})"
    if any(comparison.left_out):
        says += (
            f"; left out: {comparison.left_out[0]} patches that only A has, {comparison.left_out[1]} that only B has"
        )
    if any(difference.verdict == ONE_TRAINING for difference in comparison.differences):
        says += f"\n{ONE_TRAINING_MEANS}"
    content = {"verdict": comparison.verdict, "drawn": comparison.drawn, "rows": comparison.table()}
    show(content, f"{text_table(comparison.table())}\n\n{says}", as_json)


def _short_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """What fits a terminal of a blend's row; the page and --json have the rest, domains included."""
    names = {
        "name": "blend",
        "n": "n",
        "balanced_accuracy": "BA",
        "balanced_accuracy_interval": "95 %",
        "balanced_accuracy_in_sample": "in-sample",
        "roc_auc": "AUROC",
        "roc_auc_interval": "95 % ",
        "log_loss": "log-loss",
    }
    return {title: row[key] for key, title in names.items()}
