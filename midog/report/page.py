"""One self-contained HTML page about a run or a blend: figures, tables, thumbnails; no script, nothing to load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ensemble.blend import BLEND_FILE
from midog.errors import DataError
from midog.files import write_text
from midog.report.findings import Findings
from midog.report.from_blend import blend_findings
from midog.report.from_run import run_findings
from midog.report.markup import (
    Drawing,
    Section,
    escape,
    job_figure,
    page_html,
    paragraphs,
    table_html,
    thumbnails,
)
from midog.report.published import AMIBR, CHALLENGE, PROTOCOLS, SOURCES, published_table
from midog.report.reading import reading_list
from midog.report.sections import PLUMBING, all_sections
from midog.report.text import cell_text
from midog.run import open_run

__all__ = [
    "Drawing",
    "Section",
    "job_figure",
    "published_section",
    "report",
    "table_html",
    "thumbnails",
]

REPORT_FILE = "report.html"


def report(
    source: Path | str,
    out: Path | str | None = None,
    title: str | None = None,
    sections: Sequence[Section] = (),
    first: Sequence[Section] = (),
) -> Path:
    """Write the page about a run folder (also one that is still going) or a blend folder; returns its path.

    Args:
        source: run or blend folder.
        out: file to write; default: report.html inside `source`.
        title: of the browser's tab and above the head line; default: what `source` is, and its name.
        sections: shown after the report's own, before its provenance.
        first: shown before the report's own.

    Raises: DataError when `source` is neither, or holds files that are damaged.
    """
    source = Path(source)
    found = gather(source)
    *own, last = all_sections(found) or [Section("Nothing yet")]
    ordered = [*first, *own, *sections, last]
    title = title or f"midog {found.kind} {found.name}"
    whole = page_html(title, _head(title, found), ordered)
    folder = source if source.is_dir() else source.parent
    return write_text(Path(out) if out is not None else folder / REPORT_FILE, whole)


def gather(source: Path) -> Findings:
    """What the folder says. Raises: DataError when it is neither run nor blend."""
    if source.name == BLEND_FILE or (source / BLEND_FILE).is_file():
        return blend_findings(source)
    if (source / "recipe.yaml").is_file():
        return run_findings(open_run(source))
    raise DataError(
        f"{source} is neither a run nor a blend",
        "give the folder that `midog train … -o RUN` or `midog blend … -o BLEND` made",
    )


def published_section(heading: str = "Published scores, and how they were made") -> Section:
    """The published tables, each under its protocol."""
    parts = []
    for benchmark in (CHALLENGE, AMIBR):
        rows = [_published_line(row, benchmark) for row in published_table() if row["benchmark"] == benchmark]
        source = f"Source: {SOURCES[benchmark]}."
        parts.append(f"<h3>{escape(benchmark)}</h3>\n{paragraphs(PROTOCOLS[benchmark])}\n{table_html(rows)}")
        parts.append(paragraphs(source, "quiet"))
    text = "Other patches and another protocol than anything above: to look up to, not to subtract from."
    return Section(heading, text, html="\n".join(parts))


def _published_line(row: dict[str, object], benchmark: str) -> dict[str, object]:
    rank = {"rank": row["rank"]} if benchmark == CHALLENGE else {}
    line = {**rank, "method": row["method"], "balanced accuracy": row["balanced_accuracy"], "AUROC": row["roc_auc"]}
    if benchmark == AMIBR:
        line |= {"AtNorM-Br": row["atnorm_br"], "AtNorM-MD": row["atnorm_md"]}
    return {key: f"{value:.4f}".removeprefix("0") if isinstance(value, float) else value for key, value in line.items()}


def _head(title: str, found: Findings) -> str:
    """What this is, the honest numbers, the warning where it applies, and what to read first."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(found.what)}</p>',
        _headline(found),
        _warning(found),
    ]
    lines = "\n".join(f"- {line}" for line in reading_list(found))
    parts += [f"<h3>Read this first</h3>\n{paragraphs(lines)}" if lines else ""]
    return "\n".join(part for part in parts if part)


def _headline(found: Findings) -> str:
    row, predictions = found.row, found.predictions
    if row is None or predictions is None:
        return ""
    cells = [_number(row.scores.balanced_accuracy, row.intervals.get("balanced_accuracy"), "balanced accuracy")]
    cells.append(_number(row.scores.roc_auc, row.intervals.get("roc_auc"), "AUROC"))
    n, cases, share = row.scores.n, predictions.cases, row.scores.n_atypical
    cells.append(f"<div><b>{n:,}</b><span>patches ({share:,} atypical) of {cases:,} cases</span></div>")
    return f'<div class="headline">{"".join(cells)}</div>\n<p class="quiet">{escape(found.how_scored)}</p>'


def _number(value: float | None, interval: object, what: str) -> str:
    spread = ""
    if interval is not None:
        spread = f" <small>{cell_text((interval.low, interval.high))}</small>"  # type: ignore[attr-defined]
    return f"<div><b>{cell_text(value)}{spread}</b><span>{what}, 95 % interval by case</span></div>"


def _warning(found: Findings) -> str:
    if not found.random:
        return ""
    every = len(found.random) == len(found.members)
    who = (
        "Every member" if every else f"{', '.join(found.random)} ({len(found.random)} of {len(found.members)} members)"
    )
    text = f"{PLUMBING}: {who} started from random weights. Chance is balanced accuracy .500 and AUROC .500."
    return f'<div class="warning">{escape(text[0].upper() + text[1:])}</div>'
