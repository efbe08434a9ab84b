"""Members whose pixels or features are changed first: one path from training to the bundle's answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from augment.views import VIEW_NAMES
from midog import api
from midog.data.patches import PatchTable
from midog.data.pixels import open_pixels
from midog.errors import DataError, UsageError
from midog.files import read_json
from midog.fold_features import member_features, robustness_of_runs
from midog.models.classifier import pretrained_state
from midog.models.features import pooled_features
from midog.models.harmonise import CombatFeatures, fit_combat
from midog.models.heads.combat import CombatHead
from midog.models.inference import Inference
from midog.models.network import Network
from midog.models.predict import predict_logits
from midog.models.weights import TensorFile
from midog.recipe import load_recipe
from midog.run import Run
from midog.training.identity import differences
from midog.training.launch import train_recipe
from midog.training.patches import Rows, fold_patches
from midog.training.source import gather

RECIPE = """
each:
  pretrained: random
  image: {crop: 64, size: 32}
  augment: light
  training: {epochs: 4, batch: 8, lr: 1e-3, warmup: 0.5}
members:
  reinhard: {backbone: test_efficientnet, tune: full, harmonise: reinhard}
  macenko: {backbone: test_vit, tune: {kind: lora, rank: 4}, harmonise: macenko}
  combat: {backbone: test_vit, tune: {kind: lora, rank: 4}, harmonise: combat}
  low_pass: {backbone: test_efficientnet, tune: full, harmonise: {kind: low_pass, radius: 30}, auxiliary: adversarial}
  plain: {backbone: test_vit, tune: {kind: lora, rank: 4}}
blend: {kind: equal}
"""
MEMBERS = ("reinhard", "macenko", "combat", "low_pass")


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("harmonised") / "alike.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def run(path: Path, table: PatchTable, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_recipe(load_recipe(path), table, tmp_path_factory.mktemp("alike") / "run", threads=1)


def model_of(run: Run, member: str) -> Inference:
    network = Network.from_dict(run.network(member))
    return Inference(network, pretrained_state(network))


def closeness(model: Inference, file: Path) -> float:
    """How close two ways to a logit come: 2e-5 of a feature, as often as the head weighs it.

    The run's adapters stand beside their weights, a fold model's are merged into them, so features differ by rounding,
    and how much is the processor's own. ComBat's refitted head weighs them up to four times, others a hundredth.
    """
    weights = [value for name, value in model.switch(file).head.named_parameters() if name.endswith("weight")]
    return 2e-5 * max(1.0, *(float(value.abs().max()) for value in weights))


@pytest.mark.parametrize("member", MEMBERS)
def test_a_fold_model_and_the_bundle_answer_as_the_run_did(
    member: str, run: Run, table: PatchTable, tmp_path: Path
) -> None:
    model, pixels = model_of(run, member), open_pixels(table)
    files = [run.fold_folder(member, k) / "model.safetensors" for k in (0, 1)]
    close = [closeness(model, file) for file in files]
    answers = [predict_logits(model.switch(file), pixels, VIEW_NAMES, "cpu") for file in files]
    for k, logits in enumerate(answers):
        rows = table.folds == k
        np.testing.assert_allclose(logits[rows], run.oof(member).logits[rows], rtol=0, atol=close[k])
    api.blend_runs(f"{run.path}:{member}").write(tmp_path / "blend")
    api.pack_bundle(tmp_path / "blend", tmp_path / "model.tar.gz", None)
    answered = api.load_bundle(tmp_path / "model.tar.gz").at("full/1").predict(pixels).logit
    np.testing.assert_allclose(answered, np.mean([logits[:, 0] for logits in answers], axis=0), rtol=0, atol=max(close))


def test_members_of_every_kind_take_turns_on_one_backbone(run: Run) -> None:
    names = ("combat", "plain", "macenko")
    files = [run.fold_folder(name, k) / "model.safetensors" for name in names for k in (0, 1)]

    def content(model: Inference, file: Path) -> list[bytes]:
        return [value.contiguous().numpy().tobytes() for value in model.switch(file).state_dict().values()]

    fresh = [content(model_of(run, "plain"), file) for file in files]
    shared = model_of(run, "plain")
    for at in (0, 2, 4, 1, 3, 5, 0, 5, 2, 0):
        assert content(shared, files[at]) == fresh[at]


def test_combat_is_that_of_the_training_patches_and_the_nearest_scanner(
    run: Run, path: Path, table: PatchTable
) -> None:
    recipe = load_recipe(path)
    source = gather(recipe, table)
    patches = fold_patches(recipe.members["combat"], 0, source.table, source.assignment, source.pixels)
    model = model_of(run, "combat").switch(run.fold_folder("combat", 0) / "model.safetensors")
    head = model.head
    assert isinstance(head, CombatHead) and head.gamma.shape[0] == len(set(patches.scanners)) == 3
    features = pooled_features(model, Rows(source.pixels, patches.samples.rows), "cpu")
    wanted = fit_combat(features, patches.scanners, patches.labels - patches.labels.mean())
    # Adapters are rounded to half precision after the fit.
    np.testing.assert_allclose(head.gamma, wanted.gamma, atol=0.05)
    new = pooled_features(model, patches.left_out, "cpu")
    alike = head.harmonise(torch.from_numpy(new)).numpy()
    for row, found in zip(new, alike, strict=True):
        label_free = replace(wanted, effects=np.zeros((0, len(wanted.mean))))
        np.testing.assert_allclose(found, label_free.transform(row[None], ["?"], unseen="nearest")[0], atol=0.1)


def test_features_of_the_head_are_measured_beside_those_before_it_and_members_are_compared(run: Run) -> None:
    found = member_features(run, "combat").arrays
    assert set(found) == {"frozen", "adapted", "head"} and set(member_features(run, "plain").arrays) < set(found)
    model = model_of(run, "combat").switch(run.fold_folder("combat", 0) / "model.safetensors")
    assert isinstance(model.head, CombatHead)
    np.testing.assert_allclose(found["head"], model.head.harmonise(torch.from_numpy(found["adapted"])), atol=1e-4)
    members = [(run.path, name) for name in ("plain", "combat")]
    plain, combat = (f"{run.path.name}:{name}" for _, name in members)
    compared = robustness_of_runs(members, "scanner", k=1)
    assert list(compared) == ["frozen", plain, combat] and compared[plain].change is None
    both, parts = compared[combat], [robustness_of_runs(members, "scanner", fold=k, k=1)[combat] for k in (0, 1)]
    assert both.card.n == sum(part.card.n for part in parts) and both.card.so == sum(part.card.so for part in parts)
    before, after = compared[plain].card.robustness_index, both.card.robustness_index
    assert before is not None and after is not None and both.change == pytest.approx(after - before)


def test_the_fold_model_says_how_it_is_made_and_plain_ones_stay_what_they_were(run: Run) -> None:
    for member in (*MEMBERS, "plain"):
        folder = run.fold_folder(member, 0)
        networks = [
            read_json(folder / "done.json")["network"],
            TensorFile(folder / "model.safetensors").about["network"],
        ]
        kinds = {network.get("harmonise", {"kind": "off"})["kind"] for network in networks}
        assert kinds == {"off" if member == "plain" else member}
    new = read_json(run.fold_folder("plain", 0) / "done.json")["identity"]
    old = {**new, "member": {key: value for key, value in new["member"].items() if key != "harmonise"}}
    assert differences(old, new) == []
    on = {**new, "member": {**new["member"], "harmonise": {"kind": "combat"}}}
    assert differences(new, on) == ["member.harmonise: off made it, on is asked for"]


def test_combat_without_scanners_is_refused_before_it_is_trained(path: Path, table: PatchTable) -> None:
    recipe = load_recipe(path)
    last = table.patches[-1].patch_id
    for message, scanner in {
        "combat needs patches of two levels of scanner; here is only A": lambda patch: "A",
        "combat needs the scanner of every patch": lambda patch: "",
        "two patches of each scanner": lambda patch: "B" if patch.patch_id == last else "A",
    }.items():
        changed = table.with_patches(replace(patch, scanner=scanner(patch)) for patch in table)
        source = gather(recipe, changed)
        k = 1 - int(table.folds[-1])
        with pytest.raises(DataError, match=message):
            fold_patches(recipe.members["combat"], k, source.table, source.assignment, source.pixels)


def test_combat_fits_a_linear_head_alone() -> None:
    class Other:
        kind = "other"

    with pytest.raises(UsageError, match="the head is other"):
        Network(Network.from_dict({"backbone": "test_vit"}).backbone, head=Other(), harmonise=CombatFeatures())
