"""What an answer costs: parameters, multiply-adds, memory, time, an estimate of energy; and who is worth it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from midog.audit.measure import Settings, score
from midog.audit.patches import Patches
from midog.audit.subject import Subject
from midog.errors import DataError
from midog.report.figures import Dot, interval_plot
from midog.report.markup import Drawing, Section, Value, table_html
from midog.run import sigmoid

TITLE = "Cost"
TIMED = 32
MANY = 1_000_000
"""Patches of the run for which energy and CO2 are estimated."""
TEXT = (
    "Look for a member that takes most of the work. Good is a cost that the platform's time limit forgives: a job "
    "holds up to 16 patches. The second table sets the audited point beside each member alone, one fold model and one "
    "view: where Pareto says no, another row is at least as good in AUROC and in multiply-adds, and better in one. "
    "Energy and CO2 are estimates from processor time and declared numbers, not read from a meter."
)


def macs(flops: int) -> int:
    """Multiply-adds: a matrix product's operations are two of them each."""
    return flops // 2


def energy(seconds: float, watts: float) -> float:
    """Joules of a constant power."""
    return seconds * watts


def kilograms(joule: float, grams_per_kwh: float) -> float:
    """CO2 of an energy: 1 kWh is 3.6 MJ."""
    return joule / 3.6e6 * grams_per_kwh / 1000


def pareto(work: Sequence[float], quality: Sequence[float | None]) -> list[bool]:
    """True where no other has as little work and as much quality, and is better in one; unknown quality is False."""
    pairs = [(-cost, value) for cost, value in zip(work, quality, strict=True) if value is not None]
    return [
        value is not None and not any(a >= -cost and b >= value and (a, b) != (-cost, value) for a, b in pairs)
        for cost, value in zip(work, quality, strict=True)
    ]


def measure(subject: Subject, patches: Patches, settings: Settings) -> dict[str, Any]:
    """A row for each member of the operating point, and what one patch takes in all.

    Counted, not measured: parameters, multiply-adds, peak memory of a batch on a processor. Measured: time of `TIMED`
    patches.
    """
    import torch

    from augment.views import VIEW_SETS
    from midog.models.cost import forward_flops, parameter_counts, predict_memory
    from midog.models.predict import pick_batch, pick_device
    from midog.models.preprocess import input_size

    views = len(VIEW_SETS[subject.point.views])
    batch = pick_batch(torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    for member in subject.members:
        network = member.network
        size = input_size(network.image, network.backbone)
        parameters, trained = parameter_counts(network)
        fold_models = 1 if subject.bundle is None else len(subject.bundle.fold_files()[member.name])
        work = macs(forward_flops(network.backbone, size))
        rows.append(
            {
                "member": member.name,
                "backbone": network.backbone.name,
                "input": size,
                "parameters": parameters,
                "trained": trained,
                "macs": work,
                "passes": fold_models * views,
                "macs_per_patch": work * fold_models * views,
                "peak_bytes": predict_memory(network.backbone, batch, torch.float32, size),
            }
        )
    few = patches.draw(min(TIMED, len(patches)), settings.seed)
    if not len(few):
        raise DataError("no patch to time", "a table with patches")
    untouched = lambda image, seed: image  # noqa: E731  (an answer that is not taken from memory)
    subject.answer(few, untouched)  # weights are read and memory is claimed once, outside the clock
    wall, processor = time.perf_counter(), time.process_time()
    subject.answer(few, untouched)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    device = str(pick_device())
    joule = energy(processor, settings.watts) / len(few) if device == "cpu" else None
    return {
        "rows": rows,
        "choices": choices(subject, patches, settings, sum(row["macs_per_patch"] for row in rows)),
        "views": views,
        "batch": batch,
        "device": device,
        "threads": torch.get_num_threads(),
        "timed": len(few),
        "ms_per_patch": 1000 * wall / len(few),
        "cpu_ms_per_patch": 1000 * processor / len(few),
        "estimate": True,
        "watts": settings.watts,
        "grams_per_kwh": settings.grams_per_kwh,
        "joule_per_patch": joule,
        "patches_of_a_run": MANY,
        "kwh_of_a_run": None if joule is None else joule * MANY / 3.6e6,
        "kg_co2_of_a_run": None if joule is None else kilograms(joule * MANY, settings.grams_per_kwh),
        "out_of_fold": subject.bundle is None,
    }


def choices(subject: Subject, patches: Patches, settings: Settings, work: int) -> list[dict[str, Any]]:
    """The audited point, of `work` multiply-adds a patch, and each member alone: scores on the same patches."""
    from midog.models.cost import forward_flops
    from midog.models.preprocess import input_size

    few = patches.draw(settings.limit, settings.seed)
    ours = subject.answer(few)
    rows: list[dict[str, Any]] = [
        {"name": "audited", "macs": work, **score(few.labels, ours.p, ours.called, few.cases)}
    ]
    for member in subject.everyone:
        z = subject.alone(member, few)
        scored = score(few.labels, sigmoid(z), z >= subject.threshold(member), few.cases)
        network = member.network
        cost = macs(forward_flops(network.backbone, input_size(network.image, network.backbone)))
        rows.append({"name": member.name, "macs": cost, **scored})
    best = pareto([row["macs"] for row in rows], [row["roc_auc"]["value"] for row in rows])
    return [{**row, "pareto": flag} for row, flag in zip(rows, best, strict=True)]


def headline(found: dict[str, Any]) -> str:
    work = sum(row["macs_per_patch"] for row in found["rows"]) / 1e9
    joule = found["joule_per_patch"]
    spent = "no estimate of energy on a GPU" if joule is None else f"{joule:.2f} J (estimate)"
    return f"{work:.2f} G multiply-adds, {found['ms_per_patch']:.0f} ms on {found['device']} and {spent} a patch"


def section(found: dict[str, Any]) -> Section:
    """Work, memory and time of each member, and what each operating point gains by its cost."""
    dots = [Dot(row["member"], row["macs_per_patch"] / 1e9) for row in found["rows"]]
    rows = [
        {
            "member": row["member"],
            "backbone": row["backbone"],
            "input px": row["input"],
            "parameters": row["parameters"],
            "trained": row["trained"],
            "G multiply-adds": row["macs"] / 1e9,
            "passes a patch": row["passes"],
            f"peak MB, batch of {found['batch']}": row["peak_bytes"] / 1e6,
        }
        for row in found["rows"]
    ]
    energy_text = (
        "No energy is given for a GPU: no meter was read."
        if found["joule_per_patch"] is None
        else f"Energy, an estimate at {found['watts']:g} W a busy core: {found['joule_per_patch']:.3f} J a patch, "
        f"{found['kwh_of_a_run']:.2f} kWh and {found['kg_co2_of_a_run']:.2f} kg of CO2 for a million, at "
        f"{found['grams_per_kwh']:g} g a kWh."
    )
    note = (
        f"{found['ms_per_patch']:.1f} ms a patch on {found['device']} with {found['threads']} threads "
        f"({found['cpu_ms_per_patch']:.1f} ms of processor time; {found['timed']} patches timed once, after a "
        f"warm-up). {energy_text}"
    )
    if found["out_of_fold"]:
        note += " Out of fold one fold model answers for a patch; a bundle asks all that it holds."
    caption = "Multiply-adds of one patch over all fold models and views, in thousand millions."
    drawing = Drawing(interval_plot(dots, "G multiply-adds a patch"), caption)
    return Section(TITLE, TEXT, (drawing,), table_html(rows) + table_html(choice_rows(found["choices"])), note)


def choice_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cheapest first."""
    return [
        {
            "": row["name"],
            "G multiply-adds a patch": row["macs"] / 1e9,
            "AUROC": Value(**row["roc_auc"]),
            "balanced accuracy": Value(**row["balanced_accuracy"]),
            "Pareto": "yes" if row["pareto"] else "no",
        }
        for row in sorted(rows, key=lambda row: (row["macs"], row["name"]))
    ]
