"""Out-of-fold logits of members of one or more runs, side by side: the same patches, the same folds, or an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from augment.views import VIEW_NAMES, VIEW_SETS
from midog.data.patches import PatchTable
from midog.errors import DataError, UsageError, unknown
from midog.run import Oof, Run, open_run

SHOWN = 3
"""Examples given per problem."""


@dataclass(frozen=True)
class Source:
    """One member of one run. `name`, its name in the blend, is the member's, or `<run>/<member>` where taken."""

    run: Run
    member: str
    name: str


@dataclass(frozen=True)
class OofSet:
    """Logits of several members on the same patches.

    `table` the n training patches with a label; `folds` (n,) int32 the fold that left each out; `names` the m
    members; `logits` (n, m, 10) float64, views in the order of `augment.views.VIEW_NAMES`.
    """

    table: PatchTable
    folds: NDArray[np.int32]
    names: tuple[str, ...]
    logits: NDArray[np.float64]
    sources: tuple[Source, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return self.table.ids

    @cached_property
    def labels(self) -> NDArray[np.int8]:
        """(n,) 1 = atypical."""
        return self.table.labels

    @cached_property
    def cases(self) -> NDArray[np.object_]:
        return self.table.column("case")

    @cached_property
    def domains(self) -> NDArray[np.object_]:
        return self.table.column("domain")

    @property
    def prevalence(self) -> float:
        """Share of atypical patches."""
        return float(self.labels.mean())

    def take(self, columns: Sequence[int]) -> OofSet:
        """These members alone."""
        sources = tuple(self.sources[at] for at in columns)
        names = tuple(self.names[at] for at in columns)
        return replace(self, names=names, sources=sources, logits=self.logits[:, list(columns)])

    def holds(self, views: str) -> bool:
        """Whether every member's logits of these views are stored: earlier releases kept fewer than this one."""
        return bool(np.isfinite(self.logits[:, :, _columns(views)]).all())

    def views(self, views: str) -> NDArray[np.float64]:
        """(n, m): mean logit over a view set of `augment.views.VIEW_SETS`.

        Raises: UsageError for an unknown set; DataError where a run does not hold one of its views.
        """
        if views not in VIEW_SETS:
            raise unknown("views", views, VIEW_SETS)
        if not self.holds(views):
            fix = "--views d4, or train again: this release stores the stain-normalised views too"
            raise DataError(f"views {views} are not stored for all of {', '.join(self.names)}", fix)
        return np.asarray(self.logits[:, :, _columns(views)].mean(axis=2), dtype=np.float64)


def _columns(views: str) -> list[int]:
    return [VIEW_NAMES.index(name) for name in VIEW_SETS[views]]


def align(specs: Sequence[str | Path], folds: Sequence[str] | None = None) -> OofSet:
    """Read and align the members that `specs` name (`RUN` for all of a run's members, `RUN:MEMBER` for one).

    Only patches of split train with a label count, in the first run's order; with `folds` those of these folds (names).

    Raises: UsageError for an unknown or repeated member; DataError, with every problem at once, when a member is
    unfinished or the runs differ in patches, labels, cases, domains or folds.
    """
    sources = find_sources(specs)
    oofs = _read(sources, folds)
    first = sources[0]
    table = _labelled(first.run.table())
    if folds is not None:
        seen = set(oofs[0].ids)
        table = table.subset(np.array([patch_id in seen for patch_id in table.ids], dtype=np.bool_))
    problems, logits, places = [], [], []
    for source, oof in zip(sources, oofs, strict=True):
        rows, found = _match(source, table, oof, folds is not None)
        if not found:
            logits.append(oof.logits[rows])
            places.append(oof.folds[rows])
            found = _other_folds(source, table, places[0], places[-1])
        problems += found
    if problems:
        raise DataError(
            f"these members do not fit together (the patches of {first.run.path} are the measure)",
            "blend runs of one patches.csv with the same `folds`; train the others again on it",
            problems,
        )
    return OofSet(table, places[0], tuple(s.name for s in sources), np.stack(logits, axis=1), sources)


def find_sources(specs: Sequence[str | Path]) -> tuple[Source, ...]:
    """The members that `specs` name, each under a name that is unique among them."""
    if not specs:
        raise UsageError("nothing to blend", "midog blend RUN[:MEMBER]… -o BLEND")
    opened: dict[Path, Run] = {}
    found: list[tuple[Path, str]] = []
    for spec in specs:
        folder, member = split_spec(spec)
        key = folder.resolve()
        run = opened.setdefault(key, open_run(folder))
        if member is not None and member not in run.members:
            raise unknown("member", member, run.members)
        found += [(key, name) for name in ([member] if member is not None else run.members)]
    twice = [f"{opened[key].path}:{member}" for (key, member), times in Counter(found).items() if times > 1]
    if twice:
        raise UsageError(f"members named twice: {', '.join(twice)}", "give each member once")
    return tuple(Source(opened[key], member, name) for (key, member), name in zip(found, _names(found), strict=True))


def split_spec(spec: str | Path) -> tuple[Path, str | None]:
    """`RUN` or `RUN:MEMBER` → (folder, member or None); a folder whose own name has a colon stays whole."""
    text = str(spec)
    folder, colon, member = text.rpartition(":")
    if not colon or Path(text).is_dir():
        return Path(text), None
    return Path(folder), member


def _names(found: Sequence[tuple[Path, str]]) -> list[str]:
    """The member's name, `<run>/<member>` where that is taken, `<folder>/<run>/<member>` where that is too."""
    member = Counter(name for _, name in found)
    in_run = Counter((run.name, name) for run, name in found)

    def name_of(run: Path, name: str) -> str:
        if member[name] == 1:
            return name
        return f"{run.name}/{name}" if in_run[run.name, name] == 1 else f"{run.parent.name}/{run.name}/{name}"

    return [name_of(run, name) for run, name in found]


def _read(sources: Sequence[Source], folds: Sequence[str] | None) -> list[Oof]:
    """The OOF tables of all sources. Raises: DataError naming all that is missing or damaged, and what is not."""
    oofs, problems, fix = [], [], ""
    finished = []
    for source in sources:
        try:
            oofs.append(source.run.oof(source.member, folds))
            finished.append(f"{source.run.path}:{source.member}")
        except DataError as error:
            problems += [f"{source.name}: {text}" for text in (error.problem, *error.details)]
            fix = fix or error.fix
    if problems:
        fix += f"; or name only what is finished: {' '.join(finished)}" if finished else ""
        raise DataError("members whose out-of-fold logits are missing or damaged cannot be blended", fix, problems)
    return oofs


def _labelled(table: PatchTable) -> PatchTable:
    """The patches that count: split train, with a label."""
    return table.subset((table.labels >= 0) & (table.column("split") == "train"))


def _match(source: Source, table: PatchTable, oof: Oof, part: bool) -> tuple[NDArray[np.int64], list[str]]:
    """Rows of `oof` in the order of `table`, and what is wrong with them or with the source's own table; of that, where
    `part`, only the patches that `oof` has."""
    at = {patch_id: row for row, patch_id in enumerate(oof.ids)}
    own = _labelled(source.run.table())
    if part:
        own = own.subset(np.array([patch_id in at for patch_id in own.ids], dtype=np.bool_))
    lacking = [patch_id for patch_id in table.ids if patch_id not in at]
    known = set(table.ids)
    foreign = [patch_id for patch_id in own.ids if patch_id not in known]
    doubled = [patch_id for patch_id, times in Counter(oof.ids).items() if times > 1]
    problems = [
        f"{source.name}: {len(ids)} patches {what}, e.g. {', '.join(ids[:SHOWN])}"
        for what, ids in (("missing", lacking), ("of other data", foreign), ("twice", doubled))
        if ids
    ]
    if not lacking and not foreign:
        problems += _other_columns(source, table, own)
    rows = np.array([at.get(patch_id, -1) for patch_id in table.ids], dtype=np.int64)
    return rows, problems


def _other_columns(source: Source, table: PatchTable, own: PatchTable) -> list[str]:
    """Labels, cases and domains that differ between two tables of the same patches."""
    if own is table:
        return []
    place = {patch_id: row for row, patch_id in enumerate(own.ids)}
    own = own.subset(np.array([place[patch_id] for patch_id in table.ids], dtype=np.int64))
    problems = []
    for name in ("label", "case", "domain"):
        mine, theirs = own.column(name), table.column(name)
        differ = np.flatnonzero(mine != theirs)
        if len(differ):
            row = differ[0]
            example = f"{table.ids[row]} has {mine[row] or 'none'} instead of {theirs[row] or 'none'}"
            problems.append(f"{source.name}: {len(differ)} patches with another {name}, e.g. {example}")
    return problems


def _other_folds(source: Source, table: PatchTable, expected: NDArray[np.int32], folds: NDArray[np.int32]) -> list[str]:
    differ = np.flatnonzero(folds != expected)
    if not len(differ):
        return []
    row = differ[0]
    example = f"{table.ids[row]} in fold {folds[row]} instead of {expected[row]}"
    return [f"{source.name}: {len(differ)} patches in other folds, e.g. {example}"]
