"""Many members, many folds: what is missing is trained here, on all GPUs of this machine, or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augment.policies import refuse_agpl
from midog.data.folds import Assignment
from midog.data.patches import PatchTable
from midog.errors import UsageError, unknown
from midog.run import Run, fold_folder, open_run
from midog.status import holder
from midog.training.fold import train_fold
from midog.training.folder import Busy, drop_checkpoints
from midog.training.jobs import (
    Job,
    Report,
    Tally,
    fold_command,
    keep_failure,
    machine_options,
    ready,
)
from midog.training.machine import Machine, claim
from midog.training.member import Member, check_tuning
from midog.training.prepare import prepare_run
from midog.training.preview import contact_sheet, write_contact_sheet
from midog.training.slots import choose_gpus, gpu_slots, train_in_slots
from midog.training.source import Recipe, Source, gather
from midog.training.teacher import teacher_folder, teachers_first

if TYPE_CHECKING:
    from midog.training.slurm_settings import Slurm


def silent(message: str) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class Place:
    """Where training happens: GPUs (one process for each that is named), a cluster, or this process, whose device the
    machine says: the first GPU where some are named."""

    machine: Machine
    gpus: tuple[int, ...]
    cluster: Slurm | None
    pretrained: Path | None

    @property
    def said(self) -> dict[str, Any]:
        """For a run's manifest; done.json knows it of each fold. A GPU that others work on is left alone: to ask for
        its name takes some of its memory."""
        if self.cluster is not None:
            return {"device": "SLURM", "threads": self.machine.threads}
        if len(self.gpus) > 1:
            return {"device": f"{len(set(self.gpus))} GPUs", "threads": self.machine.threads}
        with claim(self.machine) as resources:
            return {"device": resources.device_name, "threads": resources.threads}


@dataclass(frozen=True)
class Plan:
    """What a run still lacks, and what training it takes."""

    recipe: Recipe
    source: Source
    missing: tuple[Job, ...]
    tally: Tally

    @property
    def run(self) -> Path:
        return self.tally.run


def train_recipe(
    recipe: Recipe,
    table: PatchTable,
    run: Path,
    members: Sequence[str] | None = None,
    folds: Sequence[str | int] | None = None,
    report: Report = silent,
    **where: Any,
) -> Run:
    """Train every (member, fold) that `run` still lacks: in this process where there is one GPU or none, else as many
    at once as there are GPUs, each in a process of its own; with `slurm` as jobs of a cluster.

    The same call twice continues or does nothing. A member that fails does not stop the others: its error is kept in
    failed.json, reported at the end, and a later call tries again.

    Args:
        recipe: a loaded recipe.
        table: patch table with folds; its `test` rows are never trained on.
        run: folder to make or to continue.
        members: names of members to train now; None is all of them.
        folds: names (or numbers) of folds to train now; None is all of them.
        report: gets one line whenever something is done, skipped or failed.
        where: what `find_place` takes: `pretrained`, `threads`, `machine`, `gpus`, `slurm`.

    Raises: UsageError when a fold that exists was made by something else, naming the keys, or for GPUs or a cluster
        that are not there; DataError for bad data or folds; MidogError at the end when members failed.
    """
    place = find_place(**where)
    plan = plan_run(recipe, table, run, place, members, folds, report)
    carry_out([plan], place)
    plan.tally.close()
    return open_run(run)


def find_place(
    pretrained: Path | str | None = None,
    threads: int | None = None,
    machine: Machine | None = None,
    gpus: Sequence[int] | None = None,
    slurm: str = "",
) -> Place:
    """Where to train.

    Args:
        pretrained: folder or file of pretrained weights.
        threads: torch's threads on CPU; by default those of the machine, shared by the processes.
        machine: everything about the machine at once; `threads` wins over its own. Processes of their own are given
            its threads and precision; one that names a device is trained with in this process.
        gpus: which of the visible GPUs to use, one fold at a time on each; None is all of them. A GPU that is named
            several times trains as many folds at once: a small network leaves most of it idle.
        slurm: what each fold asks the cluster for, as "partition=gpu,time=8:00:00" (`slurm_settings.parse_slurm`).

    Raises: UsageError for GPUs or a cluster that are not there.
    """
    refuse_agpl()
    machine = machine or Machine()
    machine = replace(machine, threads=threads) if threads is not None else machine
    chosen = choose_gpus(gpus) if machine.device == "auto" and not slurm else ()
    if chosen and gpus is not None:  # a single fold trains in this process, and on no GPU but these
        machine = replace(machine, device=f"cuda:{chosen[0]}")
    cluster = _cluster(slurm, gpus)
    if machine.threads is None and (cluster is not None or len(chosen) > 1):
        share = cluster.cpus if cluster is not None else max(1, (os.cpu_count() or 1) // len(chosen))
        machine = replace(machine, threads=share)
    return Place(machine, chosen, cluster, Path(pretrained) if pretrained is not None else None)


def plan_run(
    recipe: Recipe,
    table: PatchTable,
    run: Path,
    place: Place,
    members: Sequence[str] | None = None,
    folds: Sequence[str | int] | None = None,
    report: Report = silent,
) -> Plan:
    """Prepare a run's folder and say what it lacks; arguments and errors as those of `train_recipe`."""
    source = gather(recipe, table)
    wanted = [
        _job(recipe.members[name], k, source.assignment.names[k], run)
        for name in teachers_first(choose("member", members, tuple(recipe.members)), recipe.members)
        for k in choose_folds(folds, source.assignment)
    ]
    check_tuning(recipe.members[name] for name in dict.fromkeys(job.member for job in wanted))
    prepare_run(recipe, table, source, run, place.pretrained, {job.member for job in wanted}, place.said)
    for job in [job for job in wanted if job.done]:
        drop_checkpoints(job.folder)
        report(f"{job}: done already")
    missing = tuple(job for job in wanted if not job.done)
    return Plan(recipe, source, missing, Tally(run, len(wanted), report))


def carry_out(plans: Sequence[Plan], place: Place) -> None:
    """Train what the plans' runs lack, all of them side by side where the place has room. How each fold ended is in its
    plan's tally."""
    plan_of = {job: plan for plan in plans for job in plan.missing}
    options = machine_options(place.machine, place.pretrained)
    if place.cluster is not None:
        from midog.training.cluster import Share, train_on_cluster

        waiting = list(plan_of)
        while able := ready(waiting):
            own = [(plan, [job for job in able if plan_of[job] is plan]) for plan in plans]
            shares = [Share(plan.run, jobs, plan.tally) for plan, jobs in own if jobs]
            train_on_cluster(shares, place.cluster, options)
            waiting = [job for job in waiting if job not in able]
    elif len(place.gpus) > 1 and len(plan_of) > 1:
        train_in_slots(
            list(plan_of),
            gpu_slots(place.gpus),
            lambda job: fold_command(job, plan_of[job].run, options),
            lambda job: plan_of[job].tally,
        )
    else:
        for plan in plans:
            _train_here(plan, place)


def _job(member: Member, k: int, fold: str, run: Path) -> Job:
    folder = fold_folder(run, member.name, k)
    return Job(member.name, k, fold, folder, member.training.epochs, teacher_folder(member, folder))


def _cluster(slurm: str, gpus: Sequence[int] | None) -> Slurm | None:
    if not slurm:
        return None
    from midog.training.slurm_settings import parse_slurm

    if gpus is not None:
        raise UsageError("--gpus and --slurm: the one is this machine, the other a cluster", "leave one of them out")
    return parse_slurm(slurm)


def choose(what: str, names: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """`names`, or all where None. Raises: UsageError for one that is not known."""
    for name in names or ():
        if name not in known:
            raise unknown(what, name, known)
    return tuple(known) if names is None else tuple(dict.fromkeys(names))


def choose_folds(folds: Sequence[str | int] | None, assignment: Assignment) -> tuple[int, ...]:
    """Positions of folds given by name (a scanner where scanners are left out) or by position."""
    names, positions = assignment.names, [str(k) for k in range(len(assignment.names))]
    if folds is None:
        return tuple(range(len(names)))
    given = [str(fold) for fold in folds]
    choose("fold", given, tuple(dict.fromkeys([*names, *positions])))
    return tuple(dict.fromkeys(names.index(fold) if fold in names else int(fold) for fold in given))


def _train_here(plan: Plan, place: Place) -> None:
    """One fold after the other, in this process."""
    source, tally = plan.source, plan.tally
    for job in plan.missing:
        member = plan.recipe.members[job.member]
        try:
            train_fold(
                member,
                job.k,
                source.table,
                source.assignment,
                source.pixels,
                job.folder,
                place.pretrained,
                place.machine,
                say=tally.report,
            )
        except Busy:
            tally.skipped(job, holder(job.folder) or "another process")
        except Exception as error:  # one member's failure leaves the others their turn
            tally.failed(job, keep_failure(job, error))
        else:
            tally.done(job)


def preview_augmentation(recipe: Recipe, table: PatchTable, out: Path, member: str | None = None) -> Path:
    """Write a contact sheet of a member's augmentation as PNG; the first member where none is named."""
    name = choose("member", None if member is None else [member], tuple(recipe.members))[0]
    source = gather(recipe, table)
    sheet = contact_sheet(recipe.members[name], source.table, source.assignment, source.pixels)
    return write_contact_sheet(out, sheet)
