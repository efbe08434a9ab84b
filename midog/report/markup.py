"""Pieces of an HTML page: sections, tables, thumbnails. Everything that comes from data is escaped here."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.report.look import CSS
from midog.report.text import cell_text

CLASSES = ("normal", "atypical")


@dataclass(frozen=True)
class Drawing:
    """An SVG element with its caption (plain text). `wide`: may be wider than a phone and then scrolls in its box."""

    svg: str
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """One part of the page.

    text: plain text, paragraphs parted by blank lines, lines that begin with "- " make a list. figures: drawings in a
    row that wraps; `small` packs them tighter. html: finished HTML (from `table_html`, `thumbnails`), after the
    figures. The order on the page is heading, text, figures, html, note.
    """

    heading: str
    text: str = ""
    figures: tuple[Drawing, ...] = ()
    html: str = ""
    note: str = ""
    small: bool = False


@dataclass(frozen=True)
class Thumbnail:
    """A patch and what is said under it. `patch` (h, w, 3) uint8 RGB, None where the image is not at hand."""

    patch: NDArray[np.uint8] | None
    title: str
    atypical: bool
    verdict: str
    lines: tuple[str, ...] = ()


def escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def page_html(title: str, head: str, sections: Sequence[Section]) -> str:
    """A whole page: one file without scripts and without anything to load. `head` is HTML."""
    body = "\n".join(section_html(section) for section in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en-GB">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # No favicon: a browser would ask the server for one.
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<header>\n{head}\n</header>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section_html(section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>", paragraphs(section.text)]
    if section.figures:
        drawings = "\n".join(_figure(drawing) for drawing in section.figures)
        parts.append(f'<div class="figures{" small" if section.small else ""}">\n{drawings}\n</div>')
    parts += [section.html, paragraphs(section.note, "quiet")]
    return "<section>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def _figure(drawing: Drawing) -> str:
    caption = f"<figcaption>{escape(drawing.caption)}</figcaption>" if drawing.caption else ""
    kind = ' class="wide"' if drawing.wide else ""
    return f"<figure{kind}>{drawing.svg}{caption}</figure>"


def paragraphs(text: str, kind: str = "") -> str:
    """Plain text as paragraphs and lists."""
    opened = f'<p class="{kind}">' if kind else "<p>"
    blocks = []
    for block in filter(None, (part.strip() for part in text.split("\n\n"))):
        lines = block.splitlines()
        if all(line.startswith("- ") for line in lines):
            blocks.append("<ul>" + "".join(f"<li>{escape(line[2:])}</li>" for line in lines) + "</ul>")
        else:
            blocks.append(f"{opened}{escape(' '.join(lines))}</p>")
    return "\n".join(blocks)


def table_html(rows: Sequence[Mapping[str, Any]], strong: Collection[int] = (), free: Collection[str] = ()) -> str:
    """Rows of equal keys as a table that scrolls in its own box.

    Numbers, None and pairs go to the right as `text_table` writes them; a `Value` shows its interval beside it.
    `strong` are the bold rows, `free` the columns whose text may wrap.
    """
    if not rows:
        return ""
    header = list(rows[0])
    right = {key for key in header if all(isinstance(row[key], int | float | tuple | Value | None) for row in rows)}
    kinds = {key: ' class="number"' if key in right else ' class="free"' if key in free else "" for key in header}
    head = "".join(f"<th{kinds[key].replace('free', '')}>{escape(key)}</th>" for key in header)
    body = [
        ('<tr class="strong">' if at in strong else "<tr>")
        + "".join(f"<td{kinds[key]}>{_cell(row[key])}</td>" for key in header)
        + "</tr>"
        for at, row in enumerate(rows)
    ]
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(body)
        + "\n</tbody></table></div>"
    )


@dataclass(frozen=True)
class Value:
    """A score and its interval; None where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Marked:
    """A word with a mark behind it, such as "few"."""

    text: str
    mark: str = ""


def _cell(value: Any) -> str:
    if isinstance(value, Value):
        spread = "" if value.low is None else f" <small>{escape(cell_text((value.low, value.high)))}</small>"
        return escape(cell_text(value.value)) + spread
    if isinstance(value, Marked):
        return escape(value.text) + (f' <span class="tag">{escape(value.mark)}</span>' if value.mark else "")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float) and value < 0:
        return f"−{escape(cell_text(-value))}"
    return escape(cell_text(value))


def png_uri(patch: ArrayLike) -> str:
    """(h, w, 3) uint8 RGB → data URI of a PNG, no pixel changed."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(patch, dtype=np.uint8)).save(content, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def thumbnails(items: Sequence[Thumbnail]) -> str:
    """Patches in a grid that fits the screen."""
    return '<div class="thumbs">\n' + "\n".join(map(_thumbnail, items)) + "\n</div>"


def _thumbnail(item: Thumbnail) -> str:
    word = CLASSES[int(item.atypical)]
    lines = "".join(f"<br>{escape(line)}" for line in item.lines)
    picture = '<div class="absent">image not found</div>'
    if item.patch is not None:
        height, width = np.shape(item.patch)[:2]
        size = f'width="{width}" height="{height}"'
        picture = f'<img src="{png_uri(item.patch)}" {size} alt="{escape(item.title)}, {word}">'
    title = escape(item.title).replace("/", "/<wbr>")
    return (
        f'<figure>{picture}<figcaption>{title}<br><b class="{word}">{escape(item.verdict)}</b>{lines}'
        "</figcaption></figure>"
    )


def job_figure(pages: ArrayLike, confidence: ArrayLike, atypical: ArrayLike) -> str:
    """The pages of a challenge job as HTML thumbnails, in stack order, each with its class and confidence.

    Args:
        pages: (n, h, w, 3) uint8 RGB.
        confidence: (n,) float in [0, 1], P(atypical) whatever the class.
        atypical: (n,) bool, the class.
    """
    values, flags = np.asarray(confidence, dtype=np.float64), np.asarray(atypical, dtype=bool)
    items = [
        Thumbnail(page, f"page {at}", bool(flag), f"{CLASSES[int(flag)]} {cell_text(round(float(value), 3))}")
        for at, (page, value, flag) in enumerate(zip(np.asarray(pages), values, flags, strict=True))
    ]
    return thumbnails(items)
