"""The sheet every figure is drawn on: one quiet style, and SVG that belongs inside an HTML page.

Colours leave here as CSS variables with the light theme's value as fallback, so that one drawing serves a light and a
dark page. Text stays text, in the page's own font. Equal drawings give equal bytes.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008, "Color Universal Design": vermillion, blue and bluish green stay apart for every kind of colour
# vision; slightly darkened here, so that thin lines and small words keep their contrast on white.
INK, MUTED, RULE = "#1d1f22", "#686d74", "#d3d6da"
ATYPICAL, NORMAL, ACCENT = "#c9500c", "#1f6fb2", "#00805f"
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", ATYPICAL: "atypical", NORMAL: "normal", ACCENT: "accent"}

WIDTH = 3.55
"""Inches (341 CSS pixels): three drawings in a row on a desk, one on a phone, text of one size on both."""
SMALL, TEXT = 7.2, 8.0

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelsize": TEXT,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "figure.constrained_layout.h_pad": 0.02,
    "figure.constrained_layout.w_pad": 0.02,
}


@dataclass
class Sheet:
    """A figure while it is drawn; `svg` holds the finished drawing once the block has ended."""

    figure: Figure
    svg: str = field(default="")

    def axes(self) -> Axes:
        return self.figure.subplots()


@contextmanager
def sheet(label: str, width: float = WIDTH, height: float = 2.9) -> Iterator[Sheet]:
    """Draw on a sheet of `width` × `height` inches; `label` is what a screen reader says."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {**STYLE}  # matplotlib types the keys as literals
    style["svg.hashsalt"] = "midog"
    with matplotlib.rc_context(style):
        drawn = Sheet(Figure(figsize=(width, height), layout="constrained"))
        yield drawn
        text = io.StringIO()
        drawn.figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawn.svg = inline(text.getvalue(), label)


def inline(svg: str, label: str) -> str:
    """A matplotlib SVG as an element of an HTML page: no header, no unused ids, the page's font and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| version="[^"]*"', "", svg).replace("xlink:href=", "href=")
    used = set(re.findall(r"#([\w.:-]+)[\")]", svg))
    # matplotlib's ids depend on shapes alone: on one page, two drawings would take each other's markers.
    own = f"d{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    svg = re.sub(r' id="([^"]*)"', lambda match: f' id="{own}{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{own}", svg)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    svg = svg.replace("rotate(-0 ", "rotate(0 ")
    svg = re.sub(r' transform="rotate\(0 [^)]*\)"', "", svg)
    for colour, name in VARIABLES.items():
        svg = re.sub(f"{colour}(?![0-9a-f])", f"var(--{name}, {colour})", svg)
    svg = re.sub(r"\s*\n\s*", "\n", re.sub(r"<defs>\s*</defs>|<g>\s*</g>", "", svg))
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1).strip()
