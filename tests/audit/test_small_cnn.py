"""The small network: an ordinary run on the audited patches' folds, continued after a kill, and never by default."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midog.audit.battery import audit
from midog.audit.opening import open_subject
from midog.audit.patches import Patches, read_patches
from midog.audit.small_cnn import NAME, RECIPE, folded
from midog.data.folds import assign
from midog.errors import DataError
from midog.files import read_json
from midog.recipe import load_recipe
from midog.run import open_run, sigmoid


def products(folder: Path) -> list[bytes]:
    """The bytes of fold models and out-of-fold tables."""
    return [(path / f).read_bytes() for path in sorted(folder.glob("fold_*")) for f in ("model.safetensors", "oof.csv")]


def test_a_killed_part_continues_and_ends_in_the_same_bytes(drawn: Any, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    words = ["audit", str(drawn.bundle), str(drawn.table), "-o", str(killed), "--only", NAME, "--split", "train"]
    process = subprocess.Popen(
        [sys.executable, "-m", "midog", *words], env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
    )
    folder, deadline = killed / NAME / NAME, time.monotonic() + 300
    while not (folder / "fold_0" / "last.safetensors").exists() and process.poll() is None:
        if time.monotonic() > deadline:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "fold_0" / "last.safetensors").exists(), "killed before it had trained an epoch"
    assert not (folder / "fold_0" / "done.json").exists(), "killed too late to prove anything"

    found = [audit(drawn.bundle, drawn.table, out, [NAME], "train").parts[NAME]["found"] for out in (killed, whole)]
    assert found[0] == found[1] and products(folder) == products(whole / NAME / NAME)
    assert read_json(killed / "parts" / f"{NAME}.json")["found"] == found[0]
    _is_paired_with_the_audited_answers(found[0], drawn, whole)


def _is_paired_with_the_audited_answers(found: dict[str, Any], drawn: Any, folder: Path) -> None:
    oof = open_run(folder / NAME).oof(NAME)
    patches = read_patches(drawn.table, "train")
    assert found["own_folds"] and found["folds"] == 2 and oof.ids == patches.ids
    assert np.array_equal(oof.folds, patches.table.folds)
    p, y = sigmoid(oof.logits[:, 0]), patches.labels
    ours = open_subject(drawn.bundle).answer(patches)
    auroc = [float((q[y == 1][:, None] > q[y == 0]).mean()) for q in (ours.p, p)]
    assert found["gain"]["roc_auc"]["value"] == pytest.approx(auroc[0] - auroc[1])
    assert found["rows"]["small network"]["roc_auc"]["value"] == pytest.approx(auroc[1])


def test_patches_without_folds_of_their_own_get_some_by_case(patches: Patches) -> None:
    train = patches.take(patches.column("split") == "train")
    table, own = folded(train)
    assert own and table is train.table
    table, own = folded(patches)  # a quarter of them is `test`, which no run would touch
    assert not own and len(assign(table, "fold").names) == 5 and (table.folds >= 0).all()
    assert all(len(set(table.folds[patches.cases == case])) == 1 for case in set(patches.cases))
    assert table.ids == patches.ids and np.array_equal(table.labels, patches.labels)
    with pytest.raises(DataError, match="two cases of each class"):
        folded(patches.take(patches.cases == "c0"))


def test_the_recipe_begins_with_random_weights_of_a_small_network() -> None:
    from midog.models.cost import parameter_counts
    from midog.training.member import network_of

    recipe = load_recipe({**RECIPE, "seed": 3})
    member = recipe.members[NAME]
    parameters, trained = parameter_counts(network_of(member))
    assert member.pretrained == "random" and recipe.seed == member.seed == 3
    assert trained == parameters + 128 + 1 < 400_000  # all of the backbone, and the head
