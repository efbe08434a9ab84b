"""What the operating point costs in domains that its threshold never saw, for the terminal and for a blend's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensemble.thresholds import ONE_DOMAIN, RULES, Thresholds, threshold_table
from midog.report import figures
from midog.report.figures import Dot
from midog.report.findings import Findings
from midog.report.markup import Drawing, Section, table_html
from midog.report.text import text_table

SHORT = {
    "best BA": "best",
    "pooled BA": "pooled",
    "pooled regret": "regret",
    "across BA": "across",
    "across regret": "regret ",
    "pooled by case": "pooled*",
    "across by case": "across*",
}
TITLE = "Domains that the threshold never saw"
EXPLAINED = (
    "BA with shift, temperature and threshold fitted on the other domains by either rule; regret = best BA of any one\n"
    "threshold - BA; * the regret when fitted by case, the domain seen; fewer than ten patches of a class: none;\n"
    "networks and weights have seen every domain here: a run with `folds: scanner` says what unseen scanners cost"
)


def threshold_text(found: Thresholds | None) -> str:
    """The table and what its columns are."""
    if found is None:
        return ONE_DOMAIN
    rows = [{SHORT.get(name, name): value for name, value in row.items()} for row in threshold_table(found)]
    return f"domains that the threshold never saw\n{text_table(rows)}\n\n{EXPLAINED}"


def threshold_section(found: Findings) -> Section | None:
    """Balanced accuracy in each domain with a threshold that never saw it, and the best that one could have."""
    if not found.thresholds:
        return None
    if "domains" not in found.thresholds:
        return Section(TITLE, str(found.thresholds["how"]))
    domains, whole, mean, worst = (found.thresholds[key] for key in ("domains", "all", "mean", "worst"))
    rows = [*domains, whole, mean, worst]
    text = (
        "Shift, temperature and threshold fitted on all other domains and applied to this one: pooled, or across, "
        "which serves each of them alike. Regret is what the best threshold on the domain's own logits would have "
        "gained; the ranking, and so the AUROC, does not depend on it. Networks and weights have seen every domain; a "
        "run with folds: scanner says what unseen scanners cost."
    )
    rule = found.threshold_rule
    names = ["all", *figures.domain_names([row["domain"] for row in domains])]
    dots = [
        Dot(name, row["left_out"][rule]["balanced_accuracy"], other=row["best"], strong=row is whole)
        for name, row in zip(names, [whole, *domains], strict=True)
        if row["best"] is not None
    ]
    caption = (
        f"Balanced accuracy in a domain that the threshold ({rule}) never saw. Ring: the best that any one reaches."
    )
    drawings = (Drawing(figures.interval_plot(dots, "balanced accuracy", 0.5), caption),) if dots else ()
    return Section(TITLE, text, drawings, table_html([_line(row) for row in rows], free=("domain",)))


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    line = {"domain": row["domain"], "patches": row["n"], "atypical": row["atypical"], "best": row["best"]}
    for rule in RULES:
        cost = row["left_out"].get(rule, {})
        line |= {rule: cost.get("balanced_accuracy"), f"regret, {rule}": cost.get("regret")}
    return line | {f"{rule}, by case": row["by_case"].get(rule, {}).get("regret") for rule in RULES}
