"""Joint and concept heads from training to the bundle: the same logits on the way, and nothing heavy at its end."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from augment.views import VIEW_NAMES
from ensemble.crossfit import blend_runs
from ensemble.fit import BlendSettings
from midog.bundle import open_bundle, pack
from midog.data.patches import PatchTable
from midog.data.pixels import open_pixels
from midog.errors import DataError, UsageError
from midog.files import read_json
from midog.models.classifier import HEAD
from midog.models.features import pooled_features
from midog.models.inference import Inference
from midog.models.network import Network
from midog.models.predict import predict_logits
from midog.models.weights import TensorFile
from midog.recipe import Recipe, load_recipe
from midog.report.heads import overlay
from midog.report.page import report
from midog.run import Run, open_run
from midog.status import MAPS, read_log
from midog.training.batches import Images
from midog.training.checkpoint import Header, restore, save
from midog.training.fold import start, train_epoch
from midog.training.identity import differences, stored_identity
from midog.training.launch import train_recipe
from midog.training.machine import Machine, claim
from midog.training.patches import fold_patches
from midog.training.prototypes import class_prototypes, prototypes_of
from midog.training.seeds import generator_of
from midog.training.source import gather

RECIPE = """
each:
  pretrained: random
  image: {crop: 64, size: 64}
  augment: none
  training: {epochs: 1, batch: 8, lr: 1e-2, warmup: 0.3}
members:
  joint_vit: {backbone: test_vit, tune: {kind: lora, rank: 2}, head: {kind: joint, central: 0.1}}
  joint_conv: {backbone: test_convnextv2, tune: {kind: lora, rank: 2}, head: joint}
  joint_vit_full: {backbone: test_vit, tune: full, head: joint}
  joint_conv_full: {backbone: test_convnextv2, tune: full, head: {kind: joint, gate: 0.5, pooling: mean}}
  concept_vit: {backbone: test_vit, tune: {kind: lora, rank: 2}, head: {kind: concept, clusters: 3, width: 16}}
  concept_conv: {backbone: test_convnextv2, tune: {kind: lora, rank: 2}, head: {kind: concept, clusters: 3, width: 16}}
  concept_vit_full: {backbone: test_vit, tune: full, head: {kind: concept, clusters: 3, width: 16}}
  concept_conv_full:
    {backbone: test_convnextv2, tune: full, head: {kind: concept, anchors: ANCHORS, project: true, width: 16}}
blend: {kind: equal}
"""
PREDICT = """
import sys
from pathlib import Path
import numpy as np
from midog.bundle import open_bundle
bundle = open_bundle(sys.argv[1])
np.save(sys.argv[2], bundle.predict(np.load(sys.argv[3])).logit)
heavy = {"peft", "sklearn", "scipy", "pydantic", "albumentations", "optuna", "pandas", "matplotlib"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""


@pytest.fixture(scope="session")
def heads_recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("heads")
    generator = torch.Generator().manual_seed(0)
    sizes = {"class_0": 4, "class_1": 3, "agnostic_stroma": 2}
    file = folder / "anchors.safetensors"
    save_file({name: torch.randn(n, 10, generator=generator) for name, n in sizes.items()}, file)
    (folder / "heads.yaml").write_text(RECIPE.replace("ANCHORS", str(file)))
    return load_recipe(folder / "heads.yaml")


@pytest.fixture(scope="session")
def heads_run(tmp_path_factory: pytest.TempPathFactory, heads_recipe: Recipe, table: PatchTable) -> Run:
    return train_recipe(heads_recipe, table, tmp_path_factory.mktemp("heads") / "run", threads=1)


def test_every_head_answers_alike_from_training_to_the_bundle(
    heads_run: Run, heads_recipe: Recipe, table: PatchTable, tmp_path: Path
) -> None:
    blend_runs([heads_run.path], BlendSettings(kind="equal", views="none")).write(tmp_path / "blend")
    archive = pack(tmp_path / "blend", tmp_path / "model.tar.gz")
    # What training read is gone: the bundle brings its anchors along.
    anchors = Path(heads_recipe.members["concept_conv_full"].head.anchors)  # type: ignore[union-attr]
    moved = anchors.rename(tmp_path / "elsewhere")
    try:
        bundle = open_bundle(archive)
        entries = {entry["name"]: entry for entry in bundle.manifest["members"]}
        assert entries.keys() == heads_recipe.members.keys()
        for name, entry in entries.items():
            network = Network.from_dict(entry["network"])
            backbone = bundle.folder / entry["backbone"] if entry["backbone"] else None
            inference, oof = Inference(network, backbone), heads_run.oof(name)
            for k in range(2):
                rows = np.flatnonzero(table.folds == k)
                model = inference.switch(bundle.folder / entry["folds"][str(k)])
                found = predict_logits(model, open_pixels(table.subset(rows)), VIEW_NAMES, "cpu")
                assert found[:, 0].std() > 1e-4, f"{name}: a constant proves nothing"
                np.testing.assert_allclose(found, oof.logits[rows], rtol=1e-4, atol=2e-5, err_msg=name)
            first = predict_logits(inference.switch(bundle.folder / entry["folds"]["0"]), open_pixels(table), ["rot90"])
            again = heads_run.fold_folder(name, 0) / "model.safetensors"
            assert np.array_equal(predict_logits(inference.switch(again), open_pixels(table), ["rot90"]), first)
        patches = np.asarray(open_pixels(table)[np.arange(8)])
        expected = bundle.predict(patches).logit
        np.save(tmp_path / "patches.npy", patches)
        command = [sys.executable, "-c", PREDICT, archive, tmp_path / "logits.npy", tmp_path / "patches.npy"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert np.array_equal(np.load(tmp_path / "logits.npy"), expected)
    finally:
        moved.rename(anchors)


def test_a_head_is_stored_in_half_precision(heads_run: Run) -> None:
    for name in heads_run.members:
        file = TensorFile(heads_run.fold_folder(name, 0) / "model.safetensors")
        tensors = {key: file[key] for key in file.names if key.startswith(HEAD)}
        assert tensors and all(tensor.dtype == torch.float16 for tensor in tensors.values()), name


def test_the_log_says_where_a_joint_head_looks(heads_run: Run) -> None:
    mass = {name: read_log(heads_run.fold_folder(name, 0))[0].get("central_mass") for name in heads_run.members}
    assert all(mass[name] is None for name in mass if name.startswith("concept"))
    # 64 pixels are 4 × 4 tokens of the ViT, all of them central, and 2 × 2 of the ConvNeXt.
    assert all(mass[name] == pytest.approx(1, abs=1e-5) for name in mass if name.startswith("joint"))


def test_the_report_shows_what_the_heads_look_at(heads_run: Run, heads_recipe: Recipe, table: PatchTable) -> None:
    labels = dict(zip(table.ids, table.labels.tolist(), strict=True))
    for name in heads_run.members:
        maps = read_json(heads_run.fold_folder(name, 0) / MAPS)
        left_out = {patch.patch_id for patch in table if patch.fold == 0}
        assert set(maps["plotted"]) == left_out and set(maps["ids"]) <= left_out
        if maps["kind"] == "joint":
            attention = np.asarray(maps["attention"])
            assert attention.shape == ((8, 4, 4) if "vit" in name else (8, 2, 2))
            np.testing.assert_allclose(attention.sum(axis=(1, 2)), 1, atol=1e-4)
        else:
            assert np.shape(maps["scores"]) == (8, len(maps["concepts"]))
            assert maps["anchors"] == ("text" if name == "concept_conv_full" else "prototypes")
        for word in ("before", "after"):
            points = np.asarray(maps[word])
            assert points.shape == (len(left_out), 2) and points[:, 0].std() == pytest.approx(1, abs=1e-3)
    html = report(heads_run.path).read_text()
    assert "What the heads look at" in html and "no language prior" in html and "text-derived anchors" in html
    assert html.count("before the head: first two components") == len(heads_recipe.members)
    assert {labels[patch_id] for patch_id in maps["plotted"]} == {0, 1}


def test_heads_go_together_with_auxiliary_losses_and_harmonisers(
    heads_recipe: Recipe, table: PatchTable, tmp_path: Path
) -> None:
    words = [f"each.{key}" for key in ("auxiliary=domain_adversarial", "harmonise=reinhard")]
    folder = Path(heads_recipe.members["concept_conv_full"].head.anchors).parent  # type: ignore[union-attr]
    recipe = load_recipe(folder / "heads.yaml", words)
    names = ["joint_vit", "concept_conv"]
    run = train_recipe(recipe, table, tmp_path / "run", names, folds=[0], threads=1)
    alone = replace(recipe, members={name: replace(recipe.members[name], auxiliary=None) for name in recipe.members})
    other = train_recipe(alone, table, tmp_path / "alone", names, folds=[0], threads=1)
    for name in names:
        with_it, without = (read_log(one.fold_folder(name, 0))[0]["loss"] for one in (run, other))
        assert with_it > without + 0.1, "the adversary's cross-entropy comes on top"
    with pytest.raises(UsageError) as caught:
        load_recipe(folder / "heads.yaml", ["each.harmonise=combat"])
    assert any("combat fits a linear head again" in line for line in caught.value.details)


def test_overlay_is_bright_where_attention_lies() -> None:
    white, attention = np.full((128, 128, 3), 255, dtype=np.uint8), np.zeros((4, 4))
    attention[1, 2] = 1
    shown = overlay(white, attention, 64)
    bright = np.argwhere(shown[..., 0] == 255)
    assert bright.min(axis=0).tolist() == [32 + 16, 32 + 32] and bright.max(axis=0).tolist() == [63, 79]
    assert len(bright) == 16 * 16 and set(np.unique(shown)) == {76, 255}


def test_training_with_a_gram_term_differs_from_training_without(
    heads_run: Run, heads_recipe: Recipe, table: PatchTable, tmp_path: Path
) -> None:
    member = heads_recipe.members["joint_vit"]
    off = replace(member, head=replace(member.head, gram=0.0))
    recipe = replace(heads_recipe, members={"joint_vit": off})
    other = train_recipe(recipe, table, tmp_path / "run", folds=[0], threads=1)
    with_gram, without = (
        read_log(run.fold_folder("joint_vit", 0))[0]["loss"] for run in (open_run(heads_run.path), other)
    )
    assert with_gram != without


class Watched:
    """Patches that remember which of them were looked at."""

    def __init__(self, images: Images) -> None:
        self.images, self.seen = images, set[int]()

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        self.seen |= set(np.asarray(rows).tolist())
        return np.asarray(self.images[rows])


@pytest.mark.parametrize("name", ["concept_vit", "concept_conv"])
def test_prototypes_come_from_training_cases_alone(
    heads_run: Run, heads_recipe: Recipe, table: PatchTable, name: str
) -> None:
    member, source = heads_recipe.members[name], gather(heads_recipe, table)
    watched = Watched(source.pixels)
    patches = fold_patches(member, 1, source.table, source.assignment, watched)
    with claim(Machine(threads=1)) as resources:
        measure = prototypes_of(member, 1, patches, resources)
        classifier, _ = start(member, None, resources, 1, measure=measure)
        again, _ = start(member, None, resources, 1, measure=prototypes_of(member, 1, patches, resources))
    assert watched.seen == set(patches.samples.rows.tolist())
    assert not watched.seen & set(patches.left_out.rows.tolist())
    # Adapters start at nothing: this is the frozen backbone.
    frozen = pooled_features(classifier, source.pixels[patches.samples.rows], "cpu")
    rows = np.concatenate([np.flatnonzero(patches.labels == label) for label in (0, 1)])
    middle = frozen[rows].mean(axis=0, dtype=np.float64)
    found = {key: classifier.head.get_buffer(key) for key in ("class_0", "class_1")}
    for label, (key, anchors) in enumerate(found.items()):
        assert torch.equal(anchors, again.head.get_buffer(key)), "the same seed, the same anchors"
        torch.testing.assert_close(anchors.norm(dim=1), torch.ones(3), atol=1e-3, rtol=0)
        rng = generator_of(member.seed, name, 1, f"anchors {key}")
        own = class_prototypes(frozen[patches.labels == label], middle, 3, rng)
        torch.testing.assert_close(anchors, own, atol=2e-3, rtol=0)


def test_a_checkpoint_brings_the_prototypes_back(heads_recipe: Recipe, table: PatchTable, tmp_path: Path) -> None:
    member, source = heads_recipe.members["concept_vit"], gather(heads_recipe, table)
    patches = fold_patches(member, 0, source.table, source.assignment, source.pixels)
    with claim(Machine(threads=1)) as resources:
        classifier, state = start(member, None, resources, 0, measure=prototypes_of(member, 0, patches, resources))
        train_epoch(member, 0, 0, patches, classifier, state, resources)
        save(tmp_path / "last.safetensors", state, Header(1, 2.5, {}))
        other, again = start(member, None, resources, 0)
        assert not other.head.get_buffer("class_1").any()
        restore(tmp_path / "last.safetensors", again)
        save(tmp_path / "again.safetensors", again, Header(1, 2.5, {}))
    assert (tmp_path / "last.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    assert torch.equal(other.head.get_buffer("class_1"), classifier.head.get_buffer("class_1"))


def test_prototypes_differ_between_folds(heads_run: Run) -> None:
    one, other = (TensorFile(heads_run.fold_folder("concept_vit", k) / "model.safetensors") for k in range(2))
    assert not torch.equal(one[f"{HEAD}class_1"], other[f"{HEAD}class_1"])


def test_too_few_patches_for_the_prototypes(heads_recipe: Recipe, table: PatchTable, tmp_path: Path) -> None:
    member = heads_recipe.members["concept_vit"]
    greedy = replace(heads_recipe, members={"concept_vit": replace(member, head=replace(member.head, clusters=999))})
    with pytest.raises(DataError, match="cannot make 999 prototypes") as caught:
        train_recipe(greedy, table, tmp_path / "run", folds=[0], threads=1)
    assert "head.clusters=" in caught.value.fix


def test_anchors_are_part_of_what_made_a_fold(heads_run: Run) -> None:
    made = stored_identity(heads_run.fold_folder("concept_conv_full", 0))
    assert made is not None and len(made["anchors_sha256"]) == 64
    assert differences(made, {**made, "anchors_sha256": "0" * 64}) == [
        f"anchors_sha256: {made['anchors_sha256'][:12]}… made it, 000000000000… is asked for"
    ]
    earlier = {key: value for key, value in made.items() if key != "anchors_sha256"}
    assert differences(earlier, {**made, "anchors_sha256": ""}) == []


def test_anchors_of_another_width_are_refused_before_anything_is_trained(
    heads_recipe: Recipe, table: PatchTable, tmp_path: Path
) -> None:
    member = heads_recipe.members["concept_conv_full"]
    undeclared = replace(heads_recipe, members={member.name: replace(member, head=replace(member.head, project=False))})
    with pytest.raises(UsageError) as caught:
        train_recipe(undeclared, table, tmp_path / "run", threads=1)
    assert any("10 wide, the backbone's features" in line for line in caught.value.details)
    assert "project: true" in caught.value.fix


def test_a_fold_model_with_foreign_anchors_is_no_fold_model(heads_run: Run, tmp_path: Path) -> None:
    from midog.errors import WeightsError
    from midog.models.weights import write_tensors

    file = TensorFile(heads_run.fold_folder("concept_vit_full", 0) / "model.safetensors")
    network = Network.from_dict(file.about["network"])
    for change in ({"head.class_1": torch.zeros(3, 9)}, {"head.class_0": None}):
        tensors = {**{name: file[name] for name in file.names}, **change}
        bad = write_tensors(
            tmp_path / "bad.safetensors", {n: t for n, t in tensors.items() if t is not None}, file.about
        )
        with pytest.raises(WeightsError):
            Inference(network, None).switch(bad)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("members.joint_vit.head.gate=2", "head.gate is 2"),
        ("members.joint_vit.head={kind: jont}", "did you mean joint?"),
        ("members.joint_vit_full.head.gram=0.1", "leaves no untuned backbone"),
        ("members.concept_vit.head.cluster=3", "did you mean clusters?"),
    ],
)
def test_words_that_do_not_fit(heads_recipe: Recipe, tmp_path: Path, words: str, line: str) -> None:
    (tmp_path / "heads.yaml").write_text(RECIPE.replace("ANCHORS", "none.safetensors"))
    with pytest.raises(UsageError) as caught:
        load_recipe(tmp_path / "heads.yaml", [words])
    assert any(line in detail for detail in caught.value.details), caught.value.details


def test_a_recipe_with_heads_reads_back_equal(heads_recipe: Recipe, tmp_path: Path) -> None:
    from midog.yaml import yaml_text

    (tmp_path / "again.yaml").write_text(yaml_text(heads_recipe.plain))
    assert load_recipe(tmp_path / "again.yaml").plain == heads_recipe.plain
