"""Features of a member's fold model beside those of the backbone it started from, on patches that it never saw.

Each fold model has a feature space of its own, so the rows come from one of them: the patches that its fold left out,
and those of split `test`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from midog.data.pixels import open_pixels
from midog.errors import DataError, UsageError, WeightsError, unknown
from midog.files import read_json, sha256_file
from midog.robustness.features import Features
from midog.run import Run, open_run

COLUMNS = ("patch_id", "label", "case", "domain", "split", "fold", "tumour", "scanner", "laboratory", "species")


def member_features(
    run: Run | Path | str,
    member: str | None = None,
    fold: int = 0,
    pretrained: Path | None = None,
    device: str = "auto",
) -> Features:
    """Pooled features of the patches that fold model `fold` of `member` never saw.

    Args:
        run: a run, or its folder. member: by default the first.
        fold: number of the fold model; its patches are those of that fold and of split `test`.
        pretrained: folder or file of pretrained weights; None looks in MIDOG_WEIGHTS.

    Returns: arrays `frozen` (the pretrained backbone, rounded as in training) and `adapted`, (n, width) float32, and
        the patch table's columns.

    Raises: DataError where the fold is not trained; UsageError for an unknown member or fold; WeightsError where the
        pretrained weights are missing or not those it was trained from, or the model's file changed.
    """
    from midog.models.backbones import empty_backbone
    from midog.models.classifier import Classifier, pretrained_state
    from midog.models.features import pooled_features
    from midog.models.heads.linear import Linear
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
    frozen = Classifier(replace(network, head=Linear()), empty_backbone(network.backbone))
    frozen.backbone.load_state_dict(state)
    arrays = {"frozen": pooled_features(frozen, pixels, device, label="frozen")}
    del frozen
    adapted = Inference(network, state).switch(model)
    arrays["adapted"] = pooled_features(adapted, pixels, device, label="adapted")
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
