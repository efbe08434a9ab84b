"""Many members, many folds: what is missing is trained, one after the other, on this machine."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from augment.policies import refuse_agpl
from midog.data.folds import Assignment, assign
from midog.data.patches import PatchTable
from midog.data.pixels import Pixels, open_pixels
from midog.errors import MidogError, UsageError, unknown
from midog.files import read_json, write_json
from midog.provenance import provenance
from midog.run import Run, fold_folder, open_run
from midog.status import readable_seconds
from midog.training.fold import train_fold
from midog.training.folder import Busy
from midog.training.identity import differences, fold_identity, stored_identity
from midog.training.machine import Machine, claim
from midog.training.member import Member
from midog.training.preview import contact_sheet, write_contact_sheet
from midog.training.proof import Proof, prove
from midog.yaml import write_yaml, yaml_text

Report = Callable[[str], None]


class Recipe(Protocol):
    """What launching needs of a recipe; `midog.recipe.Recipe` is one. `plain` is the resolved recipe as plain data,
    `difference` what sets it apart from the shipped recipe that it starts from."""

    @property
    def folds(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def members(self) -> Mapping[str, Member]: ...
    @property
    def plain(self) -> dict[str, Any]: ...
    @property
    def difference(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Source:
    """The training patches of a run: `table`, `assignment` and `pixels` belong together row by row; no `test` rows."""

    table: PatchTable
    assignment: Assignment
    pixels: Pixels


def silent(message: str) -> None:
    """Report to nobody."""


def train_recipe(
    recipe: Recipe,
    table: PatchTable,
    run: Path,
    members: Sequence[str] | None = None,
    folds: Sequence[str | int] | None = None,
    pretrained: Path | str | None = None,
    threads: int | None = None,
    machine: Machine | None = None,
    report: Report = silent,
) -> Run:
    """Train every (member, fold) that `run` still lacks.

    The same call twice continues or does nothing. A member that fails does not stop the others: its error is kept in
    failed.json, reported at the end, and a later call tries again.

    Args:
        recipe: a loaded recipe.
        table: patch table with folds; its `test` rows are never touched.
        run: folder to make or to continue.
        members: names of members to train now; None is all of them.
        folds: names (or numbers) of folds to train now; None is all of them.
        pretrained: folder or file of pretrained weights.
        threads: torch's threads on CPU.
        machine: everything about the machine at once; `threads` wins over its own.
        report: gets one line whenever something is done, skipped or failed.

    Raises: UsageError when a fold that exists was made by something else, naming the keys; DataError for bad data or
        folds; MidogError at the end when members failed.
    """
    refuse_agpl()
    pretrained = Path(pretrained) if pretrained is not None else None
    machine = machine or Machine()
    machine = Machine(**{**vars(machine), "threads": threads}) if threads is not None else machine
    source = gather(recipe, table)
    wanted = [
        (recipe.members[name], k)
        for name in choose("member", members, tuple(recipe.members))
        for k in choose_folds(folds, source.assignment)
    ]
    refuse_changes(recipe, source, run, pretrained)
    write_run(recipe, table, source, run, machine)
    _train_all(wanted, source, run, pretrained, machine, report)
    return open_run(run)


def gather(recipe: Recipe, table: PatchTable) -> Source:
    """Folds and pixels of the training patches. Raises: DataError, LeakError."""
    whole = assign(table, recipe.folds)
    used = np.flatnonzero(whole.index >= 0)
    rows = table.subset(used)
    return Source(rows, Assignment(whole.index[used], whole.names), open_pixels(rows))


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


def refuse_changes(recipe: Recipe, source: Source, run: Path, pretrained: Path | None) -> None:
    """Raises: UsageError when a fold that exists was made by something else than this recipe, naming every key."""
    lines: dict[str, None] = {}
    for member in recipe.members.values():
        for k in range(len(source.assignment.names)):
            old = stored_identity(fold_folder(run, member.name, k))
            if old is None:
                continue
            new = fold_identity(member, k, source.table, source.assignment, source.pixels, pretrained)
            for line in differences(old, new):
                lines[f"{member.name}: {line}"] = None
    if lines:
        raise UsageError(
            f"{run} was made by something else than what is asked for now; nothing was changed",
            "train into another run (-o), give the changed member another name, or remove its folder to make it again",
            list(lines),
        )


def write_run(recipe: Recipe, table: PatchTable, source: Source, run: Path, machine: Machine) -> None:
    """recipe.yaml, manifest.json and patches.csv of the run."""
    with claim(machine) as resources:
        here = {"device": resources.device_name, "threads": resources.threads}
    table.write(run / "patches.csv", absolute=True)
    write_yaml(run / "recipe.yaml", recipe.plain)
    content = {
        "seed": recipe.seed,
        "folds": recipe.folds,
        "fold_names": list(source.assignment.names),
        "data_sha256": source.table.data_hash,
        "folds_sha256": source.table.folds_hash,
        "patches": len(source.table),
        "atypical": int((source.table.labels == 1).sum()),
        "cases": len(set(source.table.column("case"))),
        "held_out_patches": len(table) - len(source.table),
        **here,
        **provenance(),
        # What a fold model may have seen: `predict` counts the patches it meets again.
        "training_pixels": sorted(set(source.pixels.hashes)),
    }
    write_json(run / "manifest.json", content)


def _train_all(
    wanted: Sequence[tuple[Member, int]],
    source: Source,
    run: Path,
    pretrained: Path | None,
    machine: Machine,
    report: Report,
) -> None:
    failed: dict[str, Exception] = {}
    busy: list[str] = []
    trained = 0
    state = open_run(run)
    for member, k in wanted:
        what = f"{member.name} fold {source.assignment.names[k]}"
        if state.done(member.name, k):
            report(f"{what}: done already")
            continue
        folder = fold_folder(run, member.name, k)
        try:
            train_fold(member, k, source.table, source.assignment, source.pixels, folder, pretrained, machine)
        except Busy as error:
            busy.append(what)
            report(f"{what}: skipped, {error.problem}")
        except Exception as error:  # one member's failure leaves the others their turn
            failed[what] = error
            report(f"{what}: failed: {_first_line(error)}")
            _keep_failure(folder, error)
        else:
            trained += 1
            report(f"{what}: done in {readable_seconds(_seconds(folder))}")
    if failed:
        raise _sum_up(failed, len(wanted), run)
    if busy and not trained:
        fix = "wait for it, or stop that process and repeat the command"
        raise Busy(f"another process trains {', '.join(busy)}", fix)


def _sum_up(failed: Mapping[str, Exception], wanted: int, run: Path) -> MidogError:
    """One error for all failures; of their own kind (and exit code) where they share one, with their fix."""
    kinds = {type(error) for error in failed.values()}
    kind = kinds.pop() if len(kinds) == 1 else MidogError
    fixes = {error.fix for error in failed.values() if isinstance(error, MidogError)}
    again = "then repeat the command: only these are trained again"
    return (kind if issubclass(kind, MidogError) else MidogError)(
        f"{len(failed)} of {wanted} folds failed; what was done is kept in {run}",
        f"{fixes.pop()}; {again}" if len(fixes) == 1 else f"mend what is named above, {again}",
        [f"{what}: {_first_line(error)}" for what, error in failed.items()],
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, MidogError):
        return error.problem
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _seconds(folder: Path) -> float:
    return float(read_json(folder / "done.json")["seconds"])


def _keep_failure(folder: Path, error: Exception) -> None:
    """Write failed.json; on a full disk the error is still reported at the end."""
    trace = "".join(traceback.format_exception(error))
    content = {"error": str(error), "kind": type(error).__name__, "traceback": trace, **provenance()}
    with suppress(MidogError):
        write_json(folder / "failed.json", content)


@dataclass(frozen=True)
class DryRun:
    """The resolved recipe, how it differs from the shipped one, and what each member proved."""

    recipe: dict[str, Any]
    difference: tuple[str, ...]
    proofs: tuple[Proof, ...]
    folds: tuple[str, ...]

    def text(self) -> str:
        lines = [yaml_text(self.recipe), "difference from the shipped recipe:"]
        lines += [f"  {line}" for line in self.difference] or ["  none"]
        lines += ["", f"folds: {len(self.folds)} ({', '.join(self.folds)})", ""]
        lines += [proof.text() for proof in self.proofs]
        return "\n".join(lines)


def dry_run(
    recipe: Recipe,
    table: PatchTable,
    pretrained: Path | str | None = None,
    machine: Machine | None = None,
    members: Sequence[str] | None = None,
) -> DryRun:
    """Resolve the recipe and prove each member for real: two steps, OOF logits, save, reload, the same logits.

    Nothing is kept. Raises: what training would raise, before hours are spent.
    """
    pretrained = Path(pretrained) if pretrained is not None else None
    source = gather(recipe, table)
    proofs = tuple(
        prove(recipe.members[name], source.table, source.assignment, source.pixels, pretrained, machine or Machine())
        for name in choose("member", members, tuple(recipe.members))
    )
    return DryRun(recipe.plain, tuple(recipe.difference), proofs, source.assignment.names)


def preview_augmentation(recipe: Recipe, table: PatchTable, out: Path, member: str | None = None) -> Path:
    """Write a contact sheet of a member's augmentation as PNG; the first member where none is named."""
    name = choose("member", None if member is None else [member], tuple(recipe.members))[0]
    source = gather(recipe, table)
    sheet = contact_sheet(recipe.members[name], source.table, source.assignment, source.pixels)
    return write_contact_sheet(out, sheet)
