"""The bundle that ships: whole, small, made by the recipe of its name, and answering as on the day it was made."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import midog
from midog.archive import DEFAULT_FOLDER
from midog.data.synthetic import draw_patch
from midog.models.weights import TensorFile
from midog.recipe import load_recipe

DRAWN = {"full": [-2.0833, -3.2024, -2.2694, -2.353], "fast": [-3.6036, -3.3911, -3.7376, -2.4405]}
"""Logits of four drawn patches, atypical and normal in turn."""
DATA = Path(os.environ.get("MIDOG_DATA", Path(__file__).parents[2] / "shared" / "data"))


def test_it_is_small_and_in_half_precision() -> None:
    files = [path for path in DEFAULT_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    for path in DEFAULT_FOLDER.glob("members/*/*.safetensors"):
        file = TensorFile(path)
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        assert {str(file[name].dtype) for name in file.names if not name.endswith(buffers)} == {"torch.float16"}


def test_it_is_what_the_recipe_of_its_name_makes() -> None:
    recipe, bundle = load_recipe("default"), midog.load_bundle()
    networks = {member["name"]: member["network"] for member in bundle.manifest["members"]}
    assert list(networks) == list(recipe.members)
    for name, member in recipe.members.items():
        assert networks[name]["image"] == {"crop": member.image.crop, "size": member.image.size}
    counts = {member["name"]: len(member["folds"]) for member in bundle.manifest["members"]}
    assert counts == recipe.blend.fold_models
    assert len(bundle.at("fast").point.members) == recipe.blend.fast
    assert bundle.point.views == recipe.blend.views


@pytest.mark.parametrize("use", sorted(DRAWN))
def test_its_answers_stay(use: str) -> None:
    """On drawn patches: these are no mitotic figures, but what prepares a patch or computes a network shows here."""
    rng = np.random.default_rng(11)
    result = midog.load_bundle(use=use).predict([draw_patch(atypical, rng) for atypical in (True, False) * 2])
    np.testing.assert_allclose(result.logit, DRAWN[use], atol=2e-3)


@pytest.mark.skipif(not (DATA / "amibr" / "patches").is_dir(), reason="no AMi-Br here")
def test_it_knows_its_training_patches() -> None:
    from midog.data.pixels import read_image

    paths = [sorted((DATA / "amibr" / "patches" / kind).glob("*.png"))[:8] for kind in ("atypical", "normal")]
    result = midog.load_bundle(use="fast").predict([read_image(path) for kind in paths for path in kind])
    assert result.seen.all()
    assert result.confidence[:8].mean() > result.confidence[8:].mean() + 0.2
