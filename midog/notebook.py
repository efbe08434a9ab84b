"""How a result looks in a notebook. Nothing of this is imported until a notebook asks."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

DPI = 110


class SelfShown(Figure):
    """A figure that a notebook shows as the last line of a cell, without pyplot."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=DPI)
        return content.getvalue()


def result_html(headline: str, png: bytes, rows: Sequence[Mapping[str, Any]], left_out: int) -> str:
    """A headline, the figure, and the rows of the table; `left_out` says how many more there are."""
    picture = f'<img alt="patches" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'
    names = list(rows[0]) if rows else []
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(row[name])}</td>' for name in names)}</tr>" for row in rows)
    more = f"<p>… and {left_out} more: .table() has them all</p>" if left_out else ""
    return f"<p>{escape(headline)}</p>{picture}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))
