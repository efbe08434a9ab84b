"""What a small convolutional network learns from the audited patches alone: what pretraining and size must beat.

It is an ordinary run in FOLDER/small_cnn: `midog status` looks at it, a stop loses an epoch at most.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from midog.api import train_recipe
from midog.audit.figures import said
from midog.audit.measure import ONCE, Settings, fold_count, gain, score
from midog.audit.patches import Patches
from midog.audit.subject import Subject
from midog.data.folds import assign, make_folds
from midog.data.patches import PatchTable
from midog.errors import MidogError
from midog.report.figures import Dot, interval_plot
from midog.report.markup import Drawing, Section, Value, table_html
from midog.run import sigmoid

TITLE = "Small network"
NAME = "small_cnn"
RECIPE: dict[str, Any] = {
    "folds": "fold",
    "members": {
        NAME: {
            "backbone": {
                "name": "resnet_narrow",
                "timm": "resnet18",
                "timm_kwargs": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128], "stem_width": 16},
                "input_size": 64,
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5],
                "pooling": "avg",
            },
            "pretrained": "random",
            "image": {"crop": 64, "size": 64},
            "augment": "light",
            "tune": "full",
            "training": {"epochs": 8, "lr": 2e-3, "ema": 0.98},
        }
    },
}
"""A ResNet of four narrow blocks, 0.3 M parameters, on 16 µm around the figure. Our choice, for minutes of one core."""
TEXT = (
    "A narrow ResNet that begins with random weights and sees nothing but these patches, in minutes of one core. Look "
    "at how far the audited model lies to its right: that is what pretraining, size and patience have bought. Good is "
    "a gain whose whole interval lies above 0."
)


def measure(subject: Subject, patches: Patches, settings: Settings, folder: Path) -> dict[str, Any]:
    """Scores of the network, out of fold by case, trained in `folder`; and what the audited model gains over it."""
    many = patches.draw(ONCE * settings.limit, settings.seed)
    table, own = folded(many, settings.seed)
    oof = train_recipe({**RECIPE, "seed": settings.seed}, table, folder).oof(NAME)
    z = dict(zip(oof.ids, oof.logits[:, 0], strict=True))
    logits = np.array([z[patch_id] for patch_id in many.ids])
    y, case, ours = many.labels, many.cases, subject.answer(many)
    theirs = sigmoid(logits), logits >= 0
    return {
        "rows": {"audited": score(y, ours.p, ours.called, case), "small network": score(y, *theirs, case)},
        "gain": gain(y, case, (ours.p, ours.called), theirs),
        "folds": len(np.unique(oof.folds)),
        "own_folds": own,
    }


def folded(patches: Patches, seed: int = 0) -> tuple[PatchTable, bool]:
    """The patches with their own folds by case, and True, where all of them have folds that can be trained on; else
    with folds made here.

    Raises: DataError for fewer than two cases of a class.
    """
    table = patches.table
    if all(patch.split == "train" for patch in table):
        try:
            assign(table, "fold")
        except MidogError:
            pass
        else:
            return table, True
    everyone = table.with_patches(replace(patch, split="train", fold=None) for patch in table)
    return make_folds(everyone, f"grouped:{fold_count(patches.labels, patches.cases)}:{seed}"), False


def headline(found: dict[str, Any]) -> str:
    theirs, more = found["rows"]["small network"]["balanced_accuracy"], found["gain"]["balanced_accuracy"]
    return f"BA {said(theirs)} of a narrow ResNet from random weights; the audited model gains {said(more)}"


def section(found: dict[str, Any]) -> Section:
    """Scores of the small network beside those of the audited model, and what that gains."""
    rows = found["rows"]
    drawings = tuple(
        Drawing(
            interval_plot(
                [Dot(name, **row[metric], strong=name == "audited") for name, row in rows.items()], words, 0.5
            ),
            f"{words}; 95 % case-bootstrap intervals.",
        )
        for metric, words in (("balanced_accuracy", "balanced accuracy"), ("roc_auc", "AUROC"))
    )
    table = [
        {
            "": name,
            "balanced accuracy": Value(**row["balanced_accuracy"]),
            "AUROC": Value(**row["roc_auc"]),
            "audited gains, BA": None if name == "audited" else Value(**found["gain"]["balanced_accuracy"]),
            "audited gains, AUROC": None if name == "audited" else Value(**found["gain"]["roc_auc"]),
        }
        for name, row in rows.items()
    ]
    whose = "the patches' own" if found["own_folds"] else "made for it"
    note = (
        f"Trained and tested out of fold: {found['folds']} folds by case, {whose}; one seed, one view, atypical from "
        f"logit 0. The run lies in {NAME}/."
    )
    return Section(TITLE, TEXT, drawings, table_html(table), note)
