"""What is audited: the bundle's own answers, and out of fold only what a fold model never saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import midog
from midog.audit.opening import open_subject
from midog.audit.patches import Patches, Shown, read_patches, stratified
from midog.audit.subject import fold_of
from midog.errors import DataError, UsageError
from midog.files import read_json
from midog.models.network import Network


def test_a_bundle_answers_as_predict_does(drawn: Any, patches: Patches) -> None:
    subject = open_subject(drawn.bundle)
    assert (subject.kind, subject.point.name) == ("bundle", "fast")
    result = midog.load_bundle(drawn.bundle, use="fast").predict(patches.pixels)
    found = subject.answer(patches)
    assert np.array_equal(found.p, result.confidence) and np.array_equal(found.called, result.atypical)
    # what was trained on is recognised by its pixels
    assert np.array_equal(subject.seen(patches), patches.column("split") == "train")
    assert open_subject(drawn.bundle, "full").point.views == "d4"
    with pytest.raises(UsageError, match="unknown operating point: fest"):
        open_subject(drawn.bundle, "fest")


@pytest.mark.parametrize("kind", ["run", "blend"])
def test_out_of_fold_each_patch_is_answered_by_the_model_that_never_saw_it(
    drawn: Any, patches: Patches, kind: str
) -> None:
    from midog.models.classifier import pretrained_state
    from midog.models.inference import Inference
    from midog.models.predict import predict_logits

    subject = open_subject(getattr(drawn, kind), "fast")
    assert subject.kind == kind and not subject.seen(patches).any()
    network = Network.from_dict(read_json(drawn.run / "vit" / "fold_0" / "done.json")["network"])
    inference = Inference(network, pretrained_state(network))
    each = [
        predict_logits(inference.switch(drawn.run / "vit" / f"fold_{k}" / "model.safetensors"), patches.pixels)[:, 0]
        for k in (0, 1)
    ]
    fold = patches.table.folds
    expected = np.where(fold == 0, each[0], np.where(fold == 1, each[1], (each[0] + each[1]) / 2))
    np.testing.assert_allclose(subject.answer(patches).z, expected, atol=1e-5)
    assert np.array_equal(fold_of(subject.members[0], patches), fold)


def test_a_run_has_its_members_and_their_mean(drawn: Any, patches: Patches) -> None:
    whole = open_subject(drawn.run, "full")
    single = [open_subject(drawn.run, f"only:{name}").answer(patches).z for name in ("vit", "effnet")]
    np.testing.assert_allclose(whole.answer(patches).z, np.mean(single, axis=0), atol=1e-9)
    assert np.array_equal(whole.answer(patches).called, whole.answer(patches).z >= 0)
    with pytest.raises(UsageError, match="unknown operating point of a run"):
        open_subject(drawn.run, "only:vitt")


def test_a_patch_that_the_run_trained_on_under_another_name_is_seen(drawn: Any, patches: Patches) -> None:
    from dataclasses import replace

    renamed = patches.table.with_patches(replace(p, patch_id=f"other/{p.patch_id}") for p in patches.table)
    seen = open_subject(drawn.run).seen(Patches(renamed, len(renamed), patches.pixels))
    assert np.array_equal(seen, patches.column("split") == "train")


def test_features_of_a_run_are_of_patches_that_its_fold_model_left_out(drawn: Any, patches: Patches) -> None:
    features, problem = open_subject(drawn.run).features(patches)
    expected = midog.member_features(drawn.run, fold=0)
    assert problem == "" and features.column("patch_id").tolist() == expected.column("patch_id").tolist()
    for name in ("frozen", "adapted"):
        np.testing.assert_allclose(features.arrays[name], expected.arrays[name], atol=1e-5)
    assert len(open_subject(drawn.bundle).features(patches)[0]) == len(patches)


def test_a_drawn_part_keeps_the_shares_and_grows_with_its_size(patches: Patches) -> None:
    label = np.repeat([0, 0, 0, 1], 50)
    domain = np.tile(["a", "b"], 100)
    rows = stratified(label, domain, 40)
    assert np.bincount(label[rows]).tolist() == [30, 10] and (domain[rows] == "a").sum() == 20
    assert set(stratified(label, domain, 20)) <= set(rows)
    assert len(patches.draw(0)) == len(patches.draw(1000)) == 48 and len(patches.draw(24)) == 24
    with pytest.raises(UsageError, match="--limit"):
        stratified(label, domain, 0)


def test_changes_are_made_when_asked_for_and_depend_on_the_patch_alone(patches: Patches) -> None:
    def noisy(image: np.ndarray, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, image.shape, dtype=np.uint8)

    shown = Shown(patches, change=noisy)
    assert np.array_equal(shown[np.arange(2, 5)][1], shown[3])
    assert np.array_equal(Shown(patches, [3], noisy)[np.arange(1)][0], shown[3])
    assert np.array_equal(Shown(patches, [7, 3])[np.arange(2)], patches.pixels[[7, 3]])


def test_a_table_without_labels_or_split(drawn: Any, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="unknown split"):
        read_patches(drawn.table, "tset")
    text = drawn.table.read_text().splitlines()
    at = text[0].split(",").index("label")
    blank = [",".join("" if i == at else word for i, word in enumerate(line.split(","))) for line in text[1:]]
    file = drawn.table.with_name("unlabelled.csv")
    file.write_text("\n".join([text[0], *blank]))
    with pytest.raises(DataError, match="holds no labelled patch"):
        read_patches(file)
