"""The daily commands as functions: what `import midog` offers and what the command line calls.

import midog
patches = midog.read_patches("AMi-Br", folds="grouped:5:0", hold_out=0.2)
run = midog.train_recipe("cpu-small", patches, "runs/cpu-small")
blend = midog.blend_runs("runs/cpu-small")
blend.write("blends/cpu-small")
bundle = midog.load_bundle("model.tar.gz", use="full")
result = bundle.predict(images, mpp=0.25)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midog.errors import DataError

if TYPE_CHECKING:
    from ensemble.ablation import Ablation
    from ensemble.compare import Comparison
    from ensemble.result import BlendResult
    from midog.bundle import Bundle
    from midog.data.checks import Checked
    from midog.data.patches import PatchTable
    from midog.robustness.change import RobustnessChange
    from midog.robustness.features import Features
    from midog.run import Run


def read_patches(
    *data: Path | str,
    folds: str | None = None,
    hold_out: float | None = None,
    join_duplicates: bool = False,
    extend: Path | str | None = None,
) -> Checked:
    """Read data sets in their published layouts, check them, and make the folds.

    Args:
        data: folders or CSV files: AMi-Br, MIDOG25, AtNorM-MD, AtNorM-Br, OMG-Octo, a plain CSV, or a patch table.
        folds: `grouped:K:SEED` or `amibr`. None keeps the folds that the table has, else makes `grouped:5:0`.
        hold_out: share of the cases to set aside as `test`; None keeps the published split.
        join_duplicates: keep the first of several rows with equal pixels, the others as its aliases.
        extend: a patch table whose cases keep their fold and split.

    Returns: the checked table; `.problems` lists everything wrong, `.write(path)` refuses while there is any.

    Raises: DataError for data that are not there, with the command that fetches them where there is one, and as
        `midog.data.readers.read_layout` raises it.
    """
    from midog.data import checks
    from midog.data import folds as folding
    from midog.data.patches import read_table
    from midog.data.readers import read_layout

    sources = [Path(source) for source in data]
    for source in sources:
        _require(source, _how_to_get(source))
    table = read_layout(sources)
    if folds is not None:  # made anew, so that nothing can be wrong with the old ones
        table = folding.without_folds(table)
    checked = checks.check(table, join_duplicates=join_duplicates)
    if checked.problems:
        return checked
    table = checked.table
    if hold_out is not None:
        table = folding.hold_out(table, hold_out)
    if extend is not None:
        table = folding.extend(table, read_table(extend))
    elif folds is not None or (table.folds < 0).all():
        table = folding.make_folds(table, folds or "grouped:5:0")
    return checked.with_table(table)


def _require(path: Path, fix: str, what: str = "file or folder") -> None:
    """Raises: DataError with this fix where nothing is at `path`."""
    if not path.exists():
        raise DataError(f"no such {what}: {path}", fix)


def _how_to_get(source: Path) -> str:
    """What to do about a data set that is not there: published ones are known by their names."""
    from midog.data.download import SOURCES

    word = "".join(letter for letter in source.name.casefold() if letter.isalnum())
    for name in SOURCES:
        if word.startswith(name):
            return f"midog data get {name}, then name the folder data/{name}; or check the path"
    if word.startswith(("midog25", "midog2025")):
        return "fetch the challenge's classification set from Zenodo, record 16044804; or check the path"
    return "check the path"


def train_recipe(
    recipe: Path | str | Mapping[str, Any],
    patches: PatchTable | Checked | Path | str,
    run: Path | str,
    **options: Any,
) -> Run:
    """Train every (member, fold) of a recipe that `run` still lacks. The same call twice continues or does nothing.

    Args:
        recipe: name of a shipped recipe, a YAML file, or what it holds.
        patches: a patch table with folds, its path, or what `read_patches` returned.
        run: folder to make or to continue.
        options: `sets` (as `--set`: "each.training.epochs=2"), and those of `training.launch.train_recipe`: `members`,
            `folds`, `pretrained`, `threads`, `machine`, `gpus`, `slurm`, `report`.
    """
    from midog.recipe import load_recipe
    from midog.training import launch

    loaded = load_recipe(recipe, options.pop("sets", ()))
    return launch.train_recipe(loaded, as_table(patches), Path(run), **options)


def train_grid(
    recipe: Path | str,
    patches: PatchTable | Checked | Path | str,
    folder: Path | str,
    vary: Sequence[str],
    seeds: Sequence[int] | None = None,
    **options: Any,
) -> tuple[Run, ...]:
    """Train a recipe in every combination of some values, with every seed: an ordinary run for each below `folder`.

    Args:
        recipe, patches: as `train_recipe` takes them.
        folder: of the runs and their grid.json; the same call twice continues or does nothing.
        vary: keys and their values, the baseline first: "augment.fisheye=off,on", "image.crop=64,128".
        seeds: of the runs; by default the recipe's own.
        options: as `train_recipe` takes them.
    """
    from midog.training import grid
    from midog.variation import vary_recipe

    varied = vary_recipe(recipe, vary, seeds, options.pop("sets", ()))
    return grid.train_grid(varied.grid, varied.base, varied.recipes, as_table(patches), Path(folder), **options)


def as_table(patches: PatchTable | Checked | Path | str) -> PatchTable:
    """The patch table behind a path or a check's result.

    Raises: that check's problems; DataError where nothing is at the path, or no patch table.
    """
    from midog.data.checks import Checked
    from midog.data.patches import read_table

    if isinstance(patches, Checked):
        patches.require()
        return patches.table
    if not isinstance(patches, Path | str):
        return patches
    _require(Path(patches), f"midog check DATA -o {patches}", "patch table")
    return read_table(patches)


def open_run(path: Path | str) -> Run:
    """Open a run folder: `.status()`, `.oof(member)`, `.scores(by=…)`."""
    from midog import run

    return run.open_run(path)


def blend_runs(*runs: Path | str, folder: Path | str | None = None, **settings: Any) -> BlendResult:
    """Blend members of runs (`RUN` or `RUN:MEMBER`): weights, calibration and operating points, cross-fitted by case.

    Args:
        runs: runs or members of runs.
        folder: where finished trials are kept, so that an interrupted search continues; write the result there.
        settings: those of the recipe's `blend` (`kind`, `trials`, `views`, `threshold`, `seed`, `fold_models`, `fast`);
            what is not given (or None) comes from the first run's recipe.
    """
    from ensemble import crossfit
    from ensemble.fit import BlendSettings
    from ensemble.oof import find_sources

    names = [str(run) for run in runs]
    chosen = {key: value for key, value in settings.items() if value is not None}
    sources = find_sources(names)
    stored = dict(sources[0].run.recipe.get("blend", {}))
    counts = dict(stored.pop("fold_models", {}))  # by the member's name in its run; members left out have no say
    own = {s.name: counts[s.member] for s in sources if s.run.path == sources[0].run.path and s.member in counts}
    return crossfit.blend_runs(names, BlendSettings(**{"fold_models": own, **stored, **chosen}), folder)


def compare_results(a: Path | str, b: Path | str, by: str | None = None, truth: Path | str | None = None) -> Comparison:
    """Paired case-bootstrap of two runs, members, blends or prediction tables; says which differences are noise."""
    from ensemble import compare

    return compare.compare(str(a), str(b), by=by, truth=truth)


def compare_grid(*runs: Path | str, by: str | None = None, folds: Sequence[str] | None = None) -> Ablation:
    """What each varied key of a grid of runs is worth: paired differences with intervals over cases and seeds.

    `folds` (names) takes the patches of these folds alone, where a grid was trained on some (`--fold`).
    """
    from ensemble import ablation

    return ablation.compare_grid([str(run) for run in runs], by=by, folds=folds)


def load_bundle(path: Path | str = "default", use: str = "full") -> Bundle:
    """Open a bundle at an operating point; `.predict(images, mpp=0.25)` classifies.

    `path`: `model.tar.gz`, an unpacked folder, or the word `default`: the ensemble that ships (a folder of that name is
    `./default`).
    """
    from midog import bundle

    return bundle.open_bundle(path, use=use)


def pack_bundle(
    blend: Path | str, out: Path | str, pretrained: Path | str | None = None, accept: Sequence[str] = ()
) -> Path:
    """Write the bundle of a blend: everything inference needs and its model card, byte-identical when repeated.

    `pretrained` is where the backbones' weights lie, as in training; None takes them from MIDOG_WEIGHTS. `accept` names
    backbones whose licence binds whoever passes the bundle on: without it, such a bundle is refused with the terms.
    """
    from midog import bundle
    from midog.report.card import model_card

    _require(Path(blend), f"midog blend RUN -o {blend}", "blend")
    return bundle.pack(Path(blend), Path(out), pretrained, model_card(blend), accept)


def member_features(run: Path | str, fold: int = 0, pretrained: Path | str | None = None) -> Features:
    """Features of a fold model beside those of its frozen backbone, on the patches that it never saw.

    Args:
        run: a run (its first member), or RUN:MEMBER.
        fold: number of the fold model.
        pretrained: where the backbone's weights lie, as in training; None takes them from MIDOG_WEIGHTS.
    """
    from ensemble.oof import split_spec
    from midog import fold_features

    folder, member = split_spec(str(run))
    return fold_features.member_features(folder, member, fold, None if pretrained is None else Path(pretrained))


def compare_features(
    runs: Sequence[Path | str], by: str = "scanner", fold: int | None = None, pretrained: Path | str | None = None
) -> dict[str, RobustnessChange]:
    """The robustness index of each run against the first one's, paired by case.

    Args:
        runs: each a run (its first member), or RUN:MEMBER, trained on one table with the same folds.
        by: the confounder's column.
        fold: number of the fold model; None takes all that every run has trained.
        pretrained: where the backbone's weights lie, as in training; None takes them from MIDOG_WEIGHTS.
    """
    from ensemble.oof import split_spec
    from midog import fold_features

    specs = [split_spec(str(run)) for run in runs]
    return fold_features.robustness_of_runs(specs, by, fold, None if pretrained is None else Path(pretrained))
