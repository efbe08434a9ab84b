"""The audit as one page of figures; above each stands what to look for and what good looks like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from midog.audit.parts import PARTS, TRAINING, lines, part
from midog.report.markup import Section, escape, page_html, paragraphs

HOW = (
    "Every interval is a 95 % bootstrap over cases; nothing was tuned for this page, and nothing should be chosen "
    "by it that is later reported on the same patches. Fewer than 30 atypical patches: shown, not ranked."
)


def page(about: Mapping[str, Any], parts: dict[str, dict[str, Any]]) -> str:
    """The whole page, as HTML."""
    sections = [part(name).section(parts[name]["found"]) for name in PARTS if "found" in parts.get(name, {})]
    missing = [
        f"- {_title(name)}: {_reason(name, parts.get(name))}" for name in PARTS if "found" not in parts.get(name, {})
    ]
    if missing:
        sections.append(Section("Not run", "\n".join(missing)))
    return page_html("midog audit", _head(about, parts), sections)


def _head(about: Mapping[str, Any], parts: dict[str, dict[str, Any]]) -> str:
    patches, subject = about["patches"], about["subject"]
    seen = patches["seen_in_training"]
    warning = ""
    if seen:
        text = (
            f"Seen in training: {seen:,} of {patches['once']:,} patches. Scores on them flatter; what moves them "
            "(views, corruption, attacks) is still what it is. Audit the run or the blend, and each fold model "
            "answers for what it never saw."
        )
        warning = f'<div class="warning">{escape(text)}</div>'
    ran = {name: content for name, content in parts.items() if "found" in content}
    summary = "\n".join(f"- {_title(name)}: {line}" for name, line in lines(ran).items())
    counts = (
        f"{patches['once']:,} patches ({patches['atypical']:,} atypical) of {patches['cases']:,} cases, out of "
        f"{patches['given']:,}, drawn in proportion to class and domain; {patches['again']:,} of them in the parts "
        f"that ask again and again. {HOW}"
    )
    return "\n".join(
        [
            f"<h1>midog audit · {escape(subject['kind'])} {escape(subject['name'])}</h1>",
            f'<p class="lead">{escape(_lead(about))}</p>',
            warning,
            paragraphs(counts, "quiet"),
            f"<h3>In one line each</h3>\n{paragraphs(summary)}" if summary else "",
        ]
    )


def _lead(about: Mapping[str, Any]) -> str:
    point, kind = about["subject"]["point"], about["subject"]["kind"]
    members = ", ".join(point["members"])
    whom = {"bundle": "its fold models"}.get(kind, "each fold model on what it never saw")
    return f"How far can one trust operating point {point['name']} ({members}; {whom}) on a scanner it does not know?"


def _title(name: str) -> str:
    return str(part(name).TITLE)


def _reason(name: str, content: Mapping[str, Any] | None) -> str:
    if content is None:
        return f"not asked for; it trains, for minutes: --only {name}" if name in TRAINING else "not asked for"
    return str(content["not_run"]).replace("\n", " ")
