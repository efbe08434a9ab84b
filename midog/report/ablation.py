"""An ablation as text: one row for each effect, the three scores side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ensemble.ablation import Ablation, Effect
from ensemble.compare import ONE_TRAINING, ONE_TRAINING_MEANS
from midog.report.text import cell_text, text_table

TITLES = {"roc_auc": "AUROC", "log_loss": "log-loss", "balanced_accuracy": "BA"}
PARTS = {
    "factor": "what varies, all other settings and seeds averaged",
    "combination": "each combination against {first}",
}


def ablation_text(found: Ablation) -> str:
    """The tables of factors and of combinations, what was drawn, and what was left out."""
    texts = []
    for part, title in PARTS.items():
        rows = effect_rows([effect for effect in found.effects if effect.part == part])
        if rows:
            texts.append(f"{title.format(first=found.first)}\n{text_table(rows)}")
    seeds = f", seed{'s' if len(found.seeds) > 1 else ''} {', '.join(map(str, found.seeds))}" if found.seeds else ""
    notes = [
        f"{found.runs} runs{seeds}; scores from → to and the interval of their "
        f"difference, wide enough for all of a table to hold together; the bootstrap drew {found.drawn}"
    ]
    if any(effect.verdict == ONE_TRAINING for effect in found.effects):
        notes.append(ONE_TRAINING_MEANS)
    if found.left_out:
        notes.append(f"left out, not finished with every seed: {', '.join(found.left_out)}")
    return "\n\n".join([*texts, "\n".join(notes)])


def effect_rows(effects: Sequence[Effect]) -> list[dict[str, Any]]:
    """Rows to print: the metrics of one change in one group beside each other."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for effect in effects:
        start = {"group": effect.group, "n": effect.n, "change": effect.change, "runs": effect.runs}
        row = rows.setdefault((effect.group, effect.change), start)
        title, interval = TITLES[effect.metric], effect.interval
        row[title] = f"{cell_text(effect.baseline)} → {cell_text(effect.value)}"
        row[f"{title} 95 %"] = None if interval is None else (interval.low, interval.high)
        row[f"{title} is"] = effect.verdict
    return list(rows.values())
