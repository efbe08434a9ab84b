"""The run folder: where things are, what is done, what came out. No torch, no pydantic.

runs/<name>/recipe.yaml  manifest.json  patches.csv; .lock, held while these are written
runs/<name>/<member>/fold_<k>/model.safetensors oof.csv log.jsonl done.json
                              last.safetensors until finished, failed.json where it failed, .lock: who trains it
                              start.jsonl of a start; start.safetensors, what came of it, until finished
                              job.log: what a process of its own said (several GPUs, a cluster)
runs/<name>/slurm/            jobs.json: which SLURM job trains which fold; submitit's files and logs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from augment.views import DIHEDRAL, VIEW_NAMES
from midog.errors import DataError, unknown
from midog.files import read_csv, read_json, sha256_file, write_csv
from midog.status import MemberStatus, Queued, RunStatus, fold_status, queued_folds, read_phases, seconds_left
from midog.yaml import read_yaml

if TYPE_CHECKING:
    from midog.data.patches import PatchTable
    from midog.metrics import Interval, Scores

OOF_HEADER = ("patch_id", "fold", *(f"logit_{name}" for name in VIEW_NAMES))


@dataclass(frozen=True)
class Oof:
    """Out-of-fold logits of one member.

    `ids` are patch ids, `folds` (n,) int32 the fold that left the patch out, `logits` (n, 10) float64 logits of
    *atypical*, one column per view in the order of `augment.views.VIEW_NAMES` (identity first; NaN in the last ones,
    the stain-normalised views, where an earlier release did not store them).
    """

    ids: tuple[str, ...]
    folds: NDArray[np.int32]
    logits: NDArray[np.float64]

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.folds.shape != (n,) or self.logits.shape != (n, len(VIEW_NAMES)):
            raise ValueError(f"{n} ids, folds {self.folds.shape}, logits {self.logits.shape}: these do not fit")

    def __len__(self) -> int:
        return len(self.ids)


def write_oof(path: Path | str, oof: Oof) -> Path:
    """Write `oof` as CSV (`patch_id,fold,logit_<view>…`); numbers read back exactly equal."""
    rows = (
        [patch_id, int(fold), *map(float, logits)]
        for patch_id, fold, logits in zip(oof.ids, oof.folds, oof.logits, strict=True)
    )
    return write_csv(path, OOF_HEADER, rows)


def read_oof(path: Path | str) -> Oof:
    """Read a table written by `write_oof`.

    Raises: DataError if a column is missing, a patch appears twice or a logit is no finite number.
    """
    header, rows = read_csv(path)
    stored = [name for name in OOF_HEADER if name in header]
    missing = [name for name in OOF_HEADER[: 2 + len(DIHEDRAL)] if name not in stored]
    if missing:
        raise DataError(
            f"{path} is no OOF table: columns missing: {', '.join(missing)}",
            "`midog train` writes oof.csv; remove the fold's folder and train it again",
        )
    columns = [header.index(name) for name in stored]
    try:
        ids = tuple(row[columns[0]] for row in rows)
        folds = np.array([int(row[columns[1]]) for row in rows], dtype=np.int32)
        logits = np.array([[float(row[at]) for at in columns[2:]] for row in rows], dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{path} holds a value that is no number: {error}", "train the fold again") from None
    _check_rows(path, ids, logits)
    views = np.full((len(ids), len(VIEW_NAMES)), np.nan)
    views[:, [OOF_HEADER.index(name) - 2 for name in stored[2:]]] = logits.reshape(len(ids), len(stored) - 2)
    return Oof(ids, folds, views)


def _check_rows(path: Path | str, ids: Sequence[str], logits: NDArray[np.float64]) -> None:
    problems = [f"row {at + 2}: {ids[at]}: logit is not finite" for at in _rows_not_finite(logits)]
    seen: set[str] = set()
    for at, patch_id in enumerate(ids):
        if patch_id in seen:
            problems.append(f"row {at + 2}: {patch_id} appears twice")
        seen.add(patch_id)
    if problems:
        raise DataError(f"{path}: rows that cannot be used", "train the fold again", problems)


def _rows_not_finite(logits: NDArray[np.float64]) -> list[int]:
    return [int(at) for at in np.flatnonzero(~np.isfinite(logits).all(axis=-1))] if logits.size else []


@dataclass(frozen=True)
class Run:
    """A folder in which a recipe is or was carried out. `recipe` is resolved: every default spelled out."""

    path: Path
    recipe: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(self.recipe["members"])

    @property
    def fold_names(self) -> tuple[str, ...]:
        """Name of each fold: "0"… for a fold column, the left-out scanner (tumour, …) for leave one out."""
        return tuple(self.manifest["fold_names"])

    def fold_folder(self, member: str, k: int) -> Path:
        return fold_folder(self.path, member, k)

    def done(self, member: str, k: int) -> bool:
        return (self.fold_folder(member, k) / "done.json").is_file()

    @cached_property
    def _table(self) -> PatchTable:
        from midog.data.patches import read_table

        return read_table(self.path / "patches.csv")

    def table(self) -> PatchTable:
        """The run's own copy of the patch table, `test` rows included; paths are absolute."""
        return self._table

    def network(self, member: str) -> dict[str, Any]:
        """The member's network as plain JSON, from the first fold that is done.

        Raises: DataError when no fold of the member is done.
        """
        for k in range(len(self.fold_names)):
            if self.done(member, k):
                return dict(read_json(self.fold_folder(member, k) / "done.json")["network"])
        raise DataError(f"no fold of {member} is done in {self.path}", self._train_again(member))

    def oof(self, member: str, folds: Sequence[str] | None = None) -> Oof:
        """All out-of-fold logits of `member`, in the order of the patch table; with `folds` (names) those of these.

        Raises: UsageError for a name that is no member or fold; DataError naming folds or patches that are missing.
        """
        self._require(member)
        wanted = self.fold_positions(folds)
        missing = [k for k in wanted if not self.done(member, k)]
        if missing:
            names = [f"fold {self.fold_names[k]} ({self.fold_folder(member, k)})" for k in missing]
            raise DataError(f"{member} of {self.path} is not trained on every fold", self._train_again(member), names)
        found = self._gather(member, wanted)
        expected = [(patch_id, fold) for patch_id, fold in self._expected() if fold in wanted]
        absent = [patch_id for patch_id, _ in expected if patch_id not in found]
        moved = [i for i, fold in expected if i in found and found[i][0] != fold]
        foreign = set(found) - {patch_id for patch_id, _ in expected}
        problems = [f"{i}: no logits" for i in absent] + [f"{i}: scored by another fold than its own" for i in moved]
        problems += [f"{i}: not a training patch of this run" for i in sorted(foreign)]
        if problems:
            raise DataError(f"OOF logits of {member} do not fit {self.path}/patches.csv", "train it again", problems)
        return _assemble([(i, *found[i]) for i, _ in expected])

    def fold_positions(self, folds: Sequence[str] | None = None) -> tuple[int, ...]:
        """Positions of these folds, given by name; of all where None. Raises: UsageError for one that is not there."""
        for name in folds or ():
            if name not in self.fold_names:
                raise unknown("fold", name, self.fold_names)
        return tuple(k for k, name in enumerate(self.fold_names) if folds is None or name in folds)

    def scores(self, member: str | None = None, by: str | None = None) -> dict[str, Scores]:
        """Scores of OOF logits (identity view, threshold at logit 0) per member; with `by`, per group of one member.

        `by` is a column of the patch table: domain, tumour, scanner or laboratory. With it and several members the
        keys are "member/group".
        """
        from midog.metrics import scores, scores_by

        wanted = self.members if member is None else (member,)
        result: dict[str, Scores] = {}
        for name in wanted:
            oof = self.oof(name)
            table = self._rows(oof.ids)
            z = oof.logits[:, 0]
            if by is None:
                result[name] = scores(table.labels, sigmoid(z), z >= 0)
                continue
            grouped = scores_by(table.labels, sigmoid(z), z >= 0, table.column(by))
            prefix = f"{name}/" if len(wanted) > 1 else ""
            result.update({f"{prefix}{group}": value for group, value in grouped.items()})
        return result

    def status(self, intervals: bool = True) -> RunStatus:
        """What is done, what runs, what failed, how long the rest will take, and the scores so far."""
        queued = queued_folds(self.path)
        members = tuple(self._member_status(name, intervals, queued) for name in self.members)
        return RunStatus(self.path, members, seconds_left(members))

    def _member_status(self, name: str, intervals: bool, queued: Mapping[tuple[str, int], Queued]) -> MemberStatus:
        from midog.metrics import bootstrap_by_case, scores

        settings = self.recipe["members"][name]
        start = settings.get("start")  # off, or a mapping
        epochs = int(start["epochs"]) if isinstance(start, Mapping) else 0
        folders = [self.fold_folder(name, k) for k in range(len(self.fold_names))]
        phases = read_phases(folders, epochs, int(settings["training"]["epochs"]))
        folds = tuple(
            fold_status(folders[k], name, k, self.fold_names[k], *both, queued.get((name, k)))
            for k, both in enumerate(phases)
        )
        found = self._gather(name)
        if not found:
            return MemberStatus(name, folds, None, {})
        table = self._rows(tuple(found))
        z = np.array([found[patch_id][1][0] for patch_id in table.ids])
        so_far = scores(table.labels, sigmoid(z), z >= 0)
        spread: Mapping[str, Interval] = {}
        if intervals and so_far.balanced_accuracy is not None:
            metrics = ("balanced_accuracy", "roc_auc", "log_loss")
            spread = bootstrap_by_case(table.labels, sigmoid(z), z >= 0, table.column("case"), metrics, n=300)
        return MemberStatus(name, folds, so_far, spread)

    def _gather(self, member: str, folds: Sequence[int] | None = None) -> dict[str, tuple[int, NDArray[np.float64]]]:
        """Logits of every fold (of `folds`) that is done: patch id → (fold, (10,) logits, one per view)."""
        found: dict[str, tuple[int, NDArray[np.float64]]] = {}
        for k in range(len(self.fold_names)) if folds is None else folds:
            if not self.done(member, k):
                continue
            folder = self.fold_folder(member, k)
            _check_oof_hash(folder)
            oof = read_oof(folder / "oof.csv")
            double = [patch_id for patch_id in oof.ids if patch_id in found]
            if double:
                raise DataError(f"{folder / 'oof.csv'} repeats patches of another fold", "train the fold again", double)
            found.update({i: (int(f), z) for i, f, z in zip(oof.ids, oof.folds, oof.logits, strict=True)})
        return found

    def _expected(self) -> list[tuple[str, int]]:
        from midog.data.folds import assign

        table = self.table()
        index = assign(table, self.recipe["folds"]).index
        return [(patch_id, int(k)) for patch_id, k in zip(table.ids, index, strict=True) if k >= 0]

    def _rows(self, ids: Sequence[str]) -> PatchTable:
        """The rows of these patches, in table order."""
        wanted = set(ids)
        table = self.table()
        return table.subset(np.array([patch_id in wanted for patch_id in table.ids], dtype=bool))

    def _require(self, member: str) -> None:
        if member not in self.members:
            raise unknown("member", member, self.members)

    def _train_again(self, member: str) -> str:
        return f"midog train {self.path / 'recipe.yaml'} {self.path / 'patches.csv'} -o {self.path} --member {member}"


def _assemble(rows: Sequence[tuple[str, int, NDArray[np.float64]]]) -> Oof:
    ids = tuple(patch_id for patch_id, _, _ in rows)
    folds = np.array([fold for _, fold, _ in rows], dtype=np.int32)
    logits = np.array([z for _, _, z in rows], dtype=np.float64).reshape(len(ids), len(VIEW_NAMES))
    return Oof(ids, folds, logits)


def _check_oof_hash(folder: Path) -> None:
    recorded = read_json(folder / "done.json").get("oof_sha256")
    if not (folder / "oof.csv").is_file() or (recorded and recorded != sha256_file(folder / "oof.csv")):
        raise DataError(
            f"{folder / 'oof.csv'} is missing or is not what training wrote",
            f"rm {folder / 'done.json'} and repeat `midog train`: the fold is made again",
        )


def fold_folder(run: Path, member: str, k: int) -> Path:
    return run / member / f"fold_{k}"


def sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits → probabilities of atypical, float64, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * np.asarray(z, dtype=np.float64))), dtype=np.float64)


def open_run(path: Path | str) -> Run:
    """Open a run folder, finished or not.

    Raises: DataError when it is none.
    """
    path = Path(path)
    absent = [name for name in ("recipe.yaml", "manifest.json", "patches.csv") if not (path / name).is_file()]
    if absent:
        raise DataError(
            f"{path} is no run: {', '.join(absent)} missing",
            "give the folder that `midog train RECIPE patches.csv -o RUN` made",
        )
    recipe = read_yaml(path / "recipe.yaml")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("members"), dict):
        raise DataError(f"{path / 'recipe.yaml'} is no resolved recipe", "repeat `midog train` with the recipe")
    return Run(path, recipe, read_json(path / "manifest.json"))


def list_runs(folder: Path | str = "runs") -> tuple[Path, ...]:
    """Run folders directly inside `folder`, by name."""
    folder = Path(folder)
    if not folder.is_dir():
        return ()
    found = (entry.parent for entry in folder.glob("*/recipe.yaml"))
    return tuple(sorted(run for run in found if (run / "manifest.json").is_file()))
