"""What small changes of pixels do to the answer: one for all patches, one for each, one on its rim; beside noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.audit.figures import curves, matrix
from midog.audit.measure import Settings, estimate
from midog.audit.patches import Patches
from midog.audit.subject import Member, Subject
from midog.errors import DataError
from midog.report.markup import Drawing, Section, Value, table_html
from midog.report.text import cell_text

if TYPE_CHECKING:
    from torch import Tensor

    from midog.robustness.attack_report import Row

TITLE = "Attacks"
BUDGETS = (0, 2, 8)
"""Largest change of a pixel, in grey levels of 255. Our choice; 0 gives the clean answers."""
TRANSFER = 8
FITTED = 48
SHARE = 5
"""Attacks take a fifth of the patches that curves take: each costs some thirty passes."""
KINDS = ("universal", "local", "rim")
TEXT = (
    "Look at the gap between each bold curve and its dashed one, random noise of the same budget: that gap is what an "
    "attack finds and chance does not. Good is no gap, above all at 2 grey levels, which nobody sees. Universal: one "
    "change for all patches, fitted on other cases. Local: one for each patch, without labels. Rim: the same, on the "
    "outer tenth of what the network sees."
)
MATRIX = (
    "In the matrix look along a row: a change fitted on one member, and what AUROC it costs the others. Good are small "
    "numbers off the diagonal, and in the column of the mean."
)


def measure(subject: Subject, patches: Patches, settings: Settings) -> dict[str, Any]:
    """Effects on the first member's first fold model, and across members where there are several.

    One fold model, one view, that model's own operating point where there is one. In a run or blend it is attacked on
    patches that it never saw and universal changes are fitted on its training cases; in a bundle on other cases.
    """
    from midog.audit.victims import STEPS, as_tensor, universal, versions, victim_of
    from midog.robustness.attack_report import NOISE, attack_report
    from midog.robustness.universal import check_disjoint

    member = subject.members[0]
    target, fitted_on = chosen(subject, member, patches.draw(5 * settings.limit, settings.seed), settings)
    check_disjoint(fitted_on.cases, target.cases)
    pixels, fit_pixels = as_tensor(target), as_tensor(fitted_on)
    victim = victim_of(subject, member)
    columns = {by: target.column(by) for by in ("scanner", "tumour")}
    groups = {by: words for by, words in columns.items() if len(set(words)) > 1 and "" not in words}
    largest = max(BUDGETS) / 255
    delta = universal(victim, fit_pixels, largest, settings.seed)
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        for budget in BUDGETS:
            epsilon, crop = budget / 255, member.network.image.crop
            attacked, control = versions(
                kind, victim, pixels, delta * (epsilon / largest), epsilon, crop, settings.seed
            )
            given = {kind: attacked, NOISE: control}
            for row in attack_report(victim, pixels, given, target.labels, target.cases, groups, seed=settings.seed):
                rows.append(plain(row, kind, budget))
    return {
        "member": member.name,
        "fold": member.first,
        "n": len(target),
        "n_atypical": int(target.labels.sum()),
        "fitted_on": len(fitted_on),
        "steps": STEPS,
        "rows": rows,
        "transfer": across(subject, target, pixels, fit_pixels, settings.seed),
    }


def chosen(subject: Subject, member: Member, patches: Patches, settings: Settings) -> tuple[Patches, Patches]:
    """Patches to attack, and patches of other cases to fit universal changes on; both evenly over label × domain.

    Raises: DataError where there are not enough cases for both.
    """
    from midog.robustness.universal import balanced_sample

    mine = subject.unseen(member, patches)
    if mine.all():
        names = sorted(set(patches.cases.astype(str)))
        held = set(np.random.default_rng(settings.seed).permutation(names)[: max(1, len(names) // 3)].tolist())
        mine = ~np.isin(patches.cases.astype(str), sorted(held))
    # A case may lie on both sides where a table was put together from several.
    other = ~mine & ~np.isin(patches.cases, patches.cases[mine])
    if not mine.any() or not other.any():
        raise DataError("attacks need cases to fit on and other cases to attack", "more cases: --limit 0")

    def balanced(rows: NDArray[np.bool_], n: int) -> Patches:
        pool = patches.take(rows)
        n = min(n, len(pool)) if n else len(pool)
        return pool.take(balanced_sample(pool.labels, pool.column("domain"), n, settings.seed))

    return balanced(mine, settings.limit // SHARE), balanced(other, FITTED)


def plain(row: Row, kind: str, budget: int) -> dict[str, Any]:
    """A row of the report as JSON: who, how much, what it cost, and what beyond noise."""
    effect, excess = row.effect, row.excess or {}
    clean, drop = effect.clean["balanced_accuracy"], effect.drop["balanced_accuracy"]
    after = estimate(None)
    if clean is not None and drop.value is not None:
        ends = drop.interval and {"low": clean - drop.interval.high, "high": clean - drop.interval.low}
        after = estimate(clean - drop.value, ends)
    return {
        "kind": kind,
        "version": row.version,
        "budget": budget,
        "by": row.by,
        "group": row.group,
        "n": effect.n,
        "n_atypical": effect.n_atypical,
        "balanced_accuracy": after,
        "drop": {name: estimate(one.value, one.interval) for name, one in effect.drop.items()},
        "excess": {name: estimate(one.value, one.interval) for name, one in excess.items()},
        "flip_rate": estimate(effect.flip_rate.value, effect.flip_rate.interval),
        "feature_cosine": estimate(effect.feature_cosine.value, effect.feature_cosine.interval),
        "psnr": effect.psnr,
        "notes": list(effect.notes),
    }


def across(subject: Subject, target: Patches, pixels: Tensor, fit_pixels: Tensor, seed: int) -> dict[str, Any] | None:
    """AUROC lost by each member, and by their mean, to a universal change fitted on each; None for a single member."""
    from midog.audit.victims import universal, victim_of
    from midog.robustness import attack_report
    from midog.robustness.perturbation import add, sign_noise

    if len(subject.everyone) < 2:
        return None
    epsilon = TRANSFER / 255
    victims = {member.name: victim_of(subject, member) for member in subject.everyone}
    seen = {attack_report.NOISE: add(pixels, sign_noise((1, *pixels.shape[1:]), epsilon, pixels, seed))}
    for name, victim in victims.items():
        seen[name] = add(pixels, universal(victim, fit_pixels, epsilon, seed))
    cells_of = attack_report.transfer(victims, pixels, seen, target.labels, target.cases, seed=seed)
    rows, columns, drop = attack_report.matrix(cells_of)
    values: NDArray[np.float64] = drop
    cells = [[None if np.isnan(value) else float(value) for value in line] for line in values]
    return {"budget": TRANSFER, "fitted_on": rows, "victims": columns, "auroc_drop": cells}


def headline(found: dict[str, Any]) -> str:
    parts = []
    for kind in KINDS:
        row = next(one for one in found["rows"] if one["by"] == "all" and one["version"] == kind and one["budget"] == 2)
        beyond = row["excess"].get("balanced_accuracy", {}).get("value")
        parts.append(f"{kind} {'undefined' if beyond is None else cell_text(beyond)}")
    return "BA lost beyond noise at 2 grey levels: " + ", ".join(parts)


def section(found: dict[str, Any]) -> Section:
    """What attacks cost, beside noise of equal budget, and how they carry over."""
    whole = [row for row in found["rows"] if row["by"] == "all"]
    panels = {}
    for kind in KINDS:
        lines = {
            name: [row["balanced_accuracy"] for row in whole if row["kind"] == kind and row["version"] == version]
            for name, version in (("attack", kind), ("noise", "noise"))
        }
        panels[kind] = {"lines": lines, "at": range(len(BUDGETS)), "words": [str(budget) for budget in BUDGETS]}
    drawings, text = list(curves(panels, "grey levels")), TEXT
    if found["transfer"]:
        moved = found["transfer"]
        cells = [[np.nan if value is None else value for value in line] for line in moved["auroc_drop"]]
        drawn = matrix(moved["fitted_on"], moved["victims"], cells, "AUROC lost: rows fitted on, columns attacked")
        drawings.append(Drawing(drawn, f"AUROC lost at {moved['budget']} grey levels; rows: fitted on.", wide=True))
        text = f"{TEXT} {MATRIX}"
    rows = [
        {
            "attack": row["kind"],
            "grey levels": row["budget"],
            "balanced accuracy": row["balanced_accuracy"]["value"],
            "lost": Value(**row["drop"]["balanced_accuracy"]),
            "lost beyond noise": Value(**row["excess"]["balanced_accuracy"]) if row["excess"] else None,
            "classes changed": Value(**row["flip_rate"]),
            "feature cosine": row["feature_cosine"]["value"],
            "PSNR, dB": None if row["psnr"] is None else f"{row['psnr']:.1f}",
        }
        for row in whole
        if row["version"] == row["kind"]
    ]
    note = (
        f"Fold model {found['fold']} of {found['member']}, {found['n']} patches ({found['n_atypical']} atypical), "
        f"one view; universal changes fitted on {found['fitted_on']} patches of other cases, {found['steps']} steps "
        "for local ones: quick attacks, which bound from below what a patient one finds. Bands: 95 % case-bootstrap "
        "intervals of the drop."
    )
    return Section(TITLE, text, tuple(drawings), table_html(rows), note, small=True)
