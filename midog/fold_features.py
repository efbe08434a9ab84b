"""Features of a member's fold model beside those of the backbone it started from, on patches that it never saw.

Each fold model has a feature space of its own, so the rows come from one of them: the patches that its fold left out,
and those of split `test`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from midog.data.pixels import open_pixels
from midog.errors import DataError, UsageError, WeightsError, unknown
from midog.files import read_json, sha256_file
from midog.robustness.change import RobustnessChange, Space, robustness_changes
from midog.robustness.features import Features
from midog.robustness.pathorob import K
from midog.run import Run, open_run

COLUMNS = ("patch_id", "label", "case", "domain", "split", "fold", "tumour", "scanner", "laboratory", "species")
FROZEN = "frozen"


def member_features(
    run: Run | Path | str,
    member: str | None = None,
    fold: int = 0,
    pretrained: Path | None = None,
    device: str = "auto",
    frozen: bool = True,
) -> Features:
    """Features of the patches that fold model `fold` of `member` never saw.

    Args:
        run: a run, or its folder. member: by default the first.
        fold: number of the fold model; its patches are those of that fold and of split `test`.
        pretrained: folder or file of pretrained weights; None looks in MIDOG_WEIGHTS.
        frozen: also those of the pretrained backbone, rounded as in training.

    Returns: arrays `frozen` and `adapted`, pooled; where the head makes features of its own (joint, concept, ComBat)
        also these, `head`; (n, width) float32; and the patch table's columns.

    Raises: DataError where the fold is not trained; UsageError for an unknown member or fold; WeightsError where the
        pretrained weights are missing or not those it was trained from, or the model's file changed.
    """
    from midog.models.build import empty_backbone
    from midog.models.classifier import Classifier, pretrained_state
    from midog.models.features import head_features, pooled_features
    from midog.models.heads.linear import Linear, LinearHead
    from midog.models.inference import Inference
    from midog.models.network import Network
    from midog.training.identity import pretrained_identity

    run = run if isinstance(run, Run) else open_run(run)
    member = run.members[0] if member is None else member
    unseen = _unseen(run, member, fold)
    done = read_json(run.fold_folder(member, fold) / "done.json")
    model = run.fold_folder(member, fold) / "model.safetensors"
    again = f"remove {model.parent} and train it again"
    if sha256_file(model) != done["model_sha256"]:
        raise WeightsError(f"{model} is not the file that done.json knows", again)
    network = Network.from_dict(done["network"])
    if pretrained_identity(network, pretrained) != done["identity"]["pretrained"]:
        raise WeightsError(
            f"{member} was trained from other pretrained weights than are found now",
            "point MIDOG_WEIGHTS at the folder that was used for training",
        )
    table = run.table().subset(unseen)
    pixels = open_pixels(table)
    state = pretrained_state(network, pretrained)
    arrays = {}
    if frozen:
        plain = Classifier(replace(network, head=Linear()), empty_backbone(network.backbone))
        plain.backbone.load_state_dict(state)
        arrays["frozen"] = pooled_features(plain, pixels, device, label="frozen")
        del plain
    adapted = Inference(network, state).switch(model)
    arrays["adapted"] = pooled_features(adapted, pixels, device, label="adapted")
    if not isinstance(adapted.head, LinearHead):
        arrays["head"] = head_features(adapted, pixels, device, label="head")
    return Features(arrays, {name: table.column(name) for name in COLUMNS})


def _unseen(run: Run, member: str, fold: int) -> np.ndarray:
    """(n,) bool: patches of the fold that the model left out, and those of split `test`."""
    from midog.data.folds import assign

    if member not in run.members:
        raise unknown("member", member, run.members)
    names = run.fold_names
    if not 0 <= fold < len(names):
        raise UsageError(f"no fold {fold}: {run.path} has {len(names)}", f"--fold 0 to {len(names) - 1}")
    if not run.done(member, fold):
        raise DataError(
            f"fold {names[fold]} of {member} is not trained in {run.path}",
            f"midog train {run.path / 'recipe.yaml'} {run.path / 'patches.csv'} -o {run.path} --member {member}",
        )
    table = run.table()
    return np.asarray((assign(table, run.recipe["folds"]).index == fold) | (table.column("split") == "test"))


def robustness_of_runs(
    runs: Sequence[tuple[Path, str | None]],
    confounder: str = "scanner",
    fold: int | None = None,
    pretrained: Path | None = None,
    k: int = K,
) -> dict[str, RobustnessChange]:
    """Robustness index of balanced pairs for what each run's heads read, against the first run's, paired by case.

    Args:
        runs: folder and member (None: the first) of each; all trained on one table, with the same folds.
        confounder: a column of `COLUMNS`; patches without a word there, or without a label, are left out.
        fold: number of the fold model; None takes all that every run has trained, and no patch of split `test`, which
            each of them could answer.

    Returns: by folder name (and member), `frozen` (the first run's backbone) before them; see `robustness.change`.

    Raises: UsageError for two runs of one name; DataError where no fold is trained in all; and as `member_features`.
    """
    names = [folder.resolve().name + (f":{member}" if member else "") for folder, member in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two runs are called {twice[0]}", "give each run once, from one folder")
    opened = {name: (open_run(folder), member) for name, (folder, member) in zip(names, runs, strict=True)}
    shared = [fold] if fold is not None else _trained_in_all(opened)
    spaces: dict[str, list[Space]] = {FROZEN: []}
    for name, (run, member) in opened.items():
        spaces[name] = []
        for k_fold in shared:
            found = member_features(run, member, k_fold, pretrained, frozen=len(spaces) == 2)
            if fold is None:
                found = found.subset(found.column("split") != "test")
            known = (found.column("label") != "") & (found.column(confounder) != "")
            kept = found.subset(known.astype(bool))
            words = (kept.column("label"), kept.column(confounder), kept.column("case"))
            spaces[name].append(Space(kept.arrays.get("head", kept.arrays["adapted"]), *words))
            if FROZEN in kept.arrays:
                spaces[FROZEN].append(Space(kept.arrays[FROZEN], *words))
    changes = robustness_changes({name: spaces[name] for name in opened}, k)
    frozen = robustness_changes({FROZEN: spaces[FROZEN]}, k)
    return {**frozen, **changes}


def _trained_in_all(runs: Mapping[str, tuple[Run, str | None]]) -> list[int]:
    """Folds that every run has trained, of the member that is asked for."""
    done = [
        {at for at in range(len(run.fold_names)) if run.done(member or run.members[0], at)}
        for run, member in runs.values()
    ]
    shared = sorted(set.intersection(*done))
    if not shared:
        raise DataError("no fold is trained in all of these runs", f"midog status {next(iter(runs))}")
    return shared
