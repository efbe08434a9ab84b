"""A start: what it learns, what it must not see, and what becomes of it."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from augment.views import VIEW_NAMES
from midog import api
from midog.data.patches import PatchTable
from midog.data.pixels import open_pixels
from midog.errors import LeakError, UsageError, WeightsError
from midog.files import read_json, write_json
from midog.models.build import build_backbone
from midog.models.classifier import BACKBONE, Classifier, pretrained_state
from midog.models.inference import Inference
from midog.models.network import Network
from midog.models.predict import predict_logits
from midog.models.weights import TensorFile
from midog.recipe import Recipe, load_recipe
from midog.run import Run, open_run
from midog.status import START, START_LOG, read_log
from midog.training.checkpoint import read_header
from midog.training.identity import differences, fold_identity
from midog.training.jobs import Job, Tally, fold_command
from midog.training.launch import train_recipe
from midog.training.machine import Machine, claim
from midog.training.member import network_of
from midog.training.patches import Rows, fold_patches
from midog.training.prepare import prepare_run
from midog.training.slots import train_in_slots
from midog.training.source import gather
from midog.training.start import HIDDEN, Reconstruction, feature_map, tune_backbone
from midog.training.teacher import load_teacher, teacher_sha256

RECIPE = """
each:
  pretrained: random
  image: {crop: 64, size: 64}
  augment: light
  training: {epochs: 10, batch: 8, lr: 1e-3, warmup: 0.5}
members:
  pupil:
    backbone: test_vit
    tune: {kind: lora, rank: 4}
    start: {kind: distil, teacher: conv, epochs: 3, features: 0.5}
  conv: {backbone: test_convnextv2, tune: full, start: off}
  lora: {backbone: test_vit, tune: {kind: lora, rank: 4}, start: {kind: reconstruct, epochs: 4, lr: 1e-3}}
  last: {backbone: test_vit, tune: {kind: last, blocks: 1}, start: {kind: reconstruct, epochs: 2}}
  plain: {backbone: test_vit, tune: {kind: lora, rank: 4}}
  norms: {backbone: test_efficientnet, tune: head, start: {kind: reconstruct, epochs: 1}}
blend: {kind: equal}
"""
TRAIN = """
import sys
from pathlib import Path
from midog.data.patches import read_table
from midog.recipe import load_recipe
from midog.training.launch import train_recipe
run, members = Path(sys.argv[3]), sys.argv[4].split()
train_recipe(load_recipe(sys.argv[1]), read_table(sys.argv[2]), run, members, folds=[0], threads=1)
"""


@pytest.fixture(scope="session")
def starts_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("starts") / "starts.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def starts(starts_path: Path) -> Recipe:
    return load_recipe(starts_path)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, starts: Recipe, table: PatchTable) -> Run:
    """Both folds of every member but `norms`, that nothing interrupted."""
    said: list[str] = []
    members = ["pupil", "conv", "lora", "last", "plain"]
    run = train_recipe(starts, table, tmp_path_factory.mktemp("whole") / "run", members, threads=1, report=said.append)
    order = [line.partition(" ")[0] for line in said]
    assert order == [name for name in ("conv", "lora", "last", "plain", "pupil") for _ in range(2)], "teachers first"
    return run


def begun(recipe: Recipe, table: PatchTable, name: str, folder: Path, images: Any = None, **changes: Any) -> Any:
    """The member's backbone after its start, the head that came with it, and the fold's patches."""
    member, source = recipe.members[name], gather(recipe, table)
    member = replace(member, start=replace(member.start, **changes))
    patches = fold_patches(member, 0, source.table, source.assignment, images or source.pixels)
    backbone = build_backbone(member.backbone, "random", member.seed)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with claim(Machine(threads=1)) as resources:

        def teacher() -> Classifier:
            sha256 = teacher_sha256(member, folder)
            identity = fold_identity(member, 0, source.table, source.assignment, source.pixels, None, sha256)
            return load_teacher(member, folder, identity, None, resources.device)

        folder.mkdir(parents=True, exist_ok=True)
        head = tune_backbone(backbone, member, 0, patches, resources, Machine(), teacher, folder, {})
    return backbone, before, head, patches


def fold_bytes(run: Path, member: str) -> tuple[bytes, bytes]:
    folder = run / member / "fold_0"
    return (folder / "model.safetensors").read_bytes(), (folder / "oof.csv").read_bytes()


@pytest.mark.parametrize("name", ["lora", "conv", "norms"])
def test_reconstruction_fills_in_training_patches_better_and_moves_every_weight(
    name: str, starts_path: Path, table: PatchTable, tmp_path: Path
) -> None:
    recipe = load_recipe(starts_path, [f"members.{name}.start={{kind: reconstruct, epochs: 25, lr: 2e-3}}"])
    backbone, before, head, patches = begun(recipe, table, name, tmp_path)
    losses = [line["loss"] for line in read_log(tmp_path, START_LOG)]
    assert len(losses) == 25 and np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert head is None and len(patches.labels) == 24
    still = [key for key, value in backbone.named_parameters() if torch.equal(value, before[key])]
    assert all(key.startswith("head.") for key in still), "only what the feature map is not made of stays"


def test_what_is_hidden_cannot_be_seen_and_the_centre_counts_most(starts: Recipe, table: PatchTable) -> None:
    member = starts.members["lora"]
    with claim(Machine(threads=1)) as resources:
        objective = Reconstruction(Classifier(network_of(member), build_backbone("test_vit")), resources)
        seen: list[torch.Tensor] = []
        original = objective.pupil.backbone.forward_features
        objective.pupil.backbone.forward_features = lambda x: (seen.append(x), original(x))[1]
        patches = torch.from_numpy(open_pixels(table)[np.arange(4)])
        objective(patches)
    whole = objective.pupil.prepare(patches)
    same = (seen[0] == whole).all(dim=1)
    hidden = ~same.view(4, 8, 8, 8, 8).permute(0, 1, 3, 2, 4).flatten(3).any(dim=3)
    assert hidden.sum((1, 2)).tolist() == [HIDDEN] * 4
    mean = whole.mean((2, 3), keepdim=True).expand_as(whole)
    assert torch.equal(seen[0][~same[:, None].expand_as(whole)], mean[~same[:, None].expand_as(whole)])
    assert objective.weight.argmax() in (31 * 64 + 31, 31 * 64 + 32, 32 * 64 + 31, 32 * 64 + 32)
    assert objective.weight[0, 0] < 0.05 * objective.weight.max()


class Guarded:
    """Images of which the left-out rows must not be read."""

    def __init__(self, images: Any, forbidden: np.ndarray) -> None:
        self.images, self.forbidden, self.read = images, set(forbidden.tolist()), set[int]()

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        asked = set(np.asarray(rows).ravel().tolist())
        assert not asked & self.forbidden, "a left-out patch was read"
        self.read |= asked
        return self.images[rows]


@pytest.mark.parametrize("name", ["lora", "pupil"])
def test_a_start_reads_the_training_patches_and_nothing_else(
    name: str, starts: Recipe, table: PatchTable, tmp_path: Path, run: Run
) -> None:
    source = gather(starts, table)
    out = np.flatnonzero(source.assignment.index == 0)
    images = Guarded(source.pixels, out)
    shutil.copytree(run.path / "conv", tmp_path / "conv")
    begun(starts, table, name, tmp_path / name / "fold_0", images)
    assert images.read == set(range(len(table))) - set(out.tolist())


def test_batch_norms_know_whole_patches_when_a_reconstruction_is_over(
    starts_path: Path, table: PatchTable, tmp_path: Path
) -> None:
    changes = ["each.augment=none", "each.training.batch=24"]
    backbone, _, _, patches = begun(load_recipe(starts_path, changes), table, "norms", tmp_path)
    pupil = Classifier(network_of(load_recipe(starts_path, changes).members["norms"]), backbone)
    x = pupil.prepare(Rows(patches.samples.images, patches.samples.rows)[np.arange(24)])
    with torch.no_grad():
        expected = backbone.conv_stem(x).mean((0, 2, 3))
    torch.testing.assert_close(backbone.bn1.running_mean, expected, atol=1e-4, rtol=1e-3)
    assert backbone.bn1.momentum is not None


@pytest.mark.parametrize(("name", "at"), [("lora", "last.safetensors"), ("conv pupil", START)])
def test_a_fold_killed_in_or_after_its_start_ends_in_the_same_bytes(
    name: str, at: str, tmp_path: Path, starts_path: Path, table_path: Path, table: PatchTable, run: Run
) -> None:
    member = name.split()[-1]
    folder = tmp_path / "run" / member / "fold_0"
    command = [sys.executable, "-c", TRAIN, str(starts_path), str(table_path), str(tmp_path / "run"), name]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not (folder / at).exists():
        assert process.poll() is None, process.communicate()[1].decode()[-2000:]
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.03))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "done.json").exists(), "killed too late to prove anything"
    states = {member.name: member.folds[0].state for member in open_run(tmp_path / "run").status().members}
    assert states[member] == "stopped"
    epochs = read_header(folder / START).epoch
    assert epochs >= 1 and (at == START or epochs == 4)

    train_recipe(load_recipe(starts_path), table, tmp_path / "run", name.split(), folds=[0], threads=1)
    assert fold_bytes(tmp_path / "run", member) == fold_bytes(run.path, member)
    assert [line["epoch"] for line in read_log(folder, START_LOG)] == [1, 2, 3, 4][: 3 if member == "pupil" else 4]
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "model.safetensors",
        "oof.csv",
        "log.jsonl",
        "start.jsonl",
        "done.json",
    }


def test_a_finished_start_is_not_repeated(starts: Recipe, table: PatchTable, tmp_path: Path) -> None:
    backbone, *_ = begun(starts, table, "lora", tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert set(before) == {START, START_LOG}
    assert not any(name.startswith("optimizer.") for name in TensorFile(tmp_path / START).names)

    class Nothing:
        def __getitem__(self, rows: np.ndarray) -> np.ndarray:
            raise AssertionError("it is read, not made")

    again, *_ = begun(starts, table, "lora", tmp_path, Nothing())
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert all(torch.equal(value, backbone.state_dict()[key]) for key, value in again.state_dict().items())


@torch.no_grad()
def distance(pupil: Classifier, teacher: Classifier, patches: np.ndarray) -> float:
    own, other = (c.eval()(c.prepare(patches)) for c in (pupil, teacher))
    return float((own - other).abs().mean())


def test_a_pupil_comes_to_answer_as_its_teacher(starts: Recipe, table: PatchTable, tmp_path: Path, run: Run) -> None:
    shutil.copytree(run.path / "conv", tmp_path / "conv")
    folder = tmp_path / "pupil" / "fold_0"
    backbone, _, head, patches = begun(starts, table, "pupil", folder, epochs=60, lr=2e-3)
    network = network_of(starts.members["pupil"])
    before = Classifier(network, build_backbone("test_vit", "random", 0))
    after = Classifier(network, backbone)
    after.head.load_state_dict(head)
    made = read_json(run.fold_folder("pupil", 0) / "done.json")["identity"]
    teacher = load_teacher(starts.members["pupil"], folder, made, None, torch.device("cpu"))
    few = Rows(patches.samples.images, patches.samples.rows)[np.arange(24)]
    assert distance(after, teacher, few) < 0.5 * distance(before, teacher, few)
    losses = [line["loss"] for line in read_log(folder, START_LOG)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_started_fold_model_holds_its_whole_backbone_in_half_precision(run: Run, table: PatchTable) -> None:
    names = set(build_backbone("test_vit").state_dict())
    for member in ("lora", "last", "pupil", "plain"):
        file = TensorFile(run.fold_folder(member, 0) / "model.safetensors")
        held = {name.removeprefix(BACKBONE) for name in file.names if name.startswith(BACKBONE)} & names
        assert held == (set() if member == "plain" else names)
        assert all(file[BACKBONE + name].dtype == torch.float16 for name in held)
        model = Inference(Network.from_dict(run.network("lora")), None) if held else None
        if model is not None:
            rows = np.flatnonzero(table.folds == 0)
            logits = predict_logits(
                model.switch(file.path), open_pixels(table.subset(rows)), VIEW_NAMES, torch.device("cpu")
            )
            np.testing.assert_allclose(logits, run.oof(member).logits[rows], atol=1e-5)


def test_started_and_plain_fold_models_take_turns(run: Run) -> None:
    network = Network.from_dict(run.network("plain"))
    base = pretrained_state(network)
    files = [
        run.fold_folder(name, k) / "model.safetensors" for name in ("lora", "plain", "last", "pupil") for k in (0, 1)
    ]

    def content(module: Classifier) -> dict[str, bytes]:
        return {name: value.contiguous().numpy().tobytes() for name, value in module.state_dict().items()}

    fresh = {file: content(Inference(network, base).switch(file)) for file in files}
    shared = Inference(network, base)
    for turn in (*range(8), *reversed(range(8)), 2, 0, 2, 4, 2, 6, 2, 7, 3):
        assert content(shared.switch(files[turn])) == fresh[files[turn]]


def test_the_bundle_of_started_members_needs_no_backbone_and_answers_as_the_run(
    run: Run, table: PatchTable, tmp_path: Path
) -> None:
    blended = api.blend_runs(f"{run.path}:lora", f"{run.path}:pupil")
    blended.write(tmp_path / "blend")
    api.pack_bundle(tmp_path / "blend", tmp_path / "model.tar.gz", None)
    bundle = api.load_bundle(tmp_path / "model.tar.gz")
    assert [entry["backbone"] for entry in bundle.manifest["members"]] == [None, None]
    assert not any(name.startswith("backbones/") for name in bundle.manifest["files"])
    pixels = open_pixels(table)
    answered = bundle.at("only:lora").predict(pixels).logit
    model = Inference(Network.from_dict(run.network("lora")), None)
    files = [run.fold_folder("lora", k) / "model.safetensors" for k in (0, 1)]
    expected = [predict_logits(model.switch(file), pixels, VIEW_NAMES[:1], torch.device("cpu"))[:, 0] for file in files]
    np.testing.assert_allclose(answered, np.mean(expected, axis=0), atol=1e-5)


def test_a_teacher_of_another_fold_is_refused(starts: Recipe, table: PatchTable, tmp_path: Path, run: Run) -> None:
    other = tmp_path / "run"
    shutil.copytree(run.path / "conv" / "fold_1", other / "conv" / "fold_0")
    with pytest.raises(UsageError, match="conv: fold: 1 made it, 0 is asked for"):
        train_recipe(starts, table, other, ["pupil"], folds=[0], threads=1)
    # Also where the run is not looked at as a whole.
    pupil = other / "pupil" / "fold_0"
    with pytest.raises(LeakError) as caught:
        begun(starts, table, "pupil", pupil)
    assert "may have seen the cases that are left out here" in str(caught.value)
    # Also where its record says otherwise.
    shutil.copy(run.path / "conv" / "fold_0" / "done.json", other / "conv" / "fold_0" / "done.json")
    with pytest.raises(WeightsError, match=r"is not the file that .* knows"):
        begun(starts, table, "pupil", pupil)
    done = read_json(other / "conv" / "fold_0" / "done.json")
    lie = {**done, "model_sha256": read_json(run.path / "conv" / "fold_1" / "done.json")["model_sha256"]}
    write_json(other / "conv" / "fold_0" / "done.json", lie)
    with pytest.raises(WeightsError, match=r"is not the file that .* knows"):
        begun(starts, table, "pupil", pupil)
    assert not (pupil / START).exists()


def test_a_teacher_that_is_not_trained_is_named_with_the_command(
    starts: Recipe, table: PatchTable, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        train_recipe(starts, table, tmp_path / "run", ["pupil"], folds=[1], threads=1)
    assert "pupil learns from conv, whose model of fold 1 is not trained" in str(caught.value)
    assert f"-o {tmp_path / 'run'} --member conv --fold 1" in caught.value.fix


def test_slots_let_a_pupil_wait_for_its_teacher(
    starts_path: Path, starts: Recipe, table: PatchTable, tmp_path: Path, run: Run
) -> None:
    source = gather(starts, table)
    prepare_run(starts, table, source, tmp_path / "run", None, starts.members, {})
    folders = {name: tmp_path / "run" / name / "fold_0" for name in ("pupil", "conv")}
    jobs = [Job("pupil", 0, "0", folders["pupil"], 10, folders["conv"]), Job("conv", 0, "0", folders["conv"], 10)]
    said: list[str] = []
    tally = Tally(tmp_path / "run", 2, said.append)
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    options = ["--threads", "1"]
    train_in_slots(jobs, [hidden, hidden], lambda job: fold_command(job, tmp_path / "run", options), lambda job: tally)
    tally.close()
    assert [line.partition(":")[0] for line in said] == ["conv fold 0", "pupil fold 0"]
    assert fold_bytes(tmp_path / "run", "pupil") == fold_bytes(run.path, "pupil")


def test_the_identity_names_the_start_and_its_teacher(starts_path: Path, table: PatchTable, run: Run) -> None:
    stored = {
        name: read_json(run.fold_folder(name, 0) / "done.json")["identity"] for name in ("plain", "lora", "pupil")
    }
    sha256 = read_json(run.fold_folder("conv", 0) / "done.json")["model_sha256"]
    assert stored["pupil"]["teacher_sha256"] == sha256 and stored["lora"]["teacher_sha256"] == ""
    older = {**stored["plain"], "member": {k: v for k, v in stored["plain"]["member"].items() if k != "start"}}
    del older["teacher_sha256"]
    assert differences(older, stored["plain"]) == []
    begun = {**stored["plain"], "member": {**stored["plain"]["member"], "start": stored["lora"]["member"]["start"]}}
    assert "member.start.kind: nothing made it, reconstruct is asked for" in differences(older, begun)
    assert differences(stored["plain"], begun) == ["member.start: off made it, on is asked for"]
    with pytest.raises(UsageError) as caught:
        changes = ["members.lora.start.epochs=9", "members.last.start=off"]
        train_recipe(load_recipe(starts_path, changes), table, run.path, threads=1)
    assert set(caught.value.details) == {
        "lora: member.start.epochs: 4 made it, 9 is asked for",
        "last: member.start: on made it, off is asked for",
    }


def test_another_model_of_the_teacher_is_a_difference(
    starts: Recipe, table: PatchTable, tmp_path: Path, run: Run
) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    done = tmp_path / "run" / "conv" / "fold_0" / "done.json"
    write_json(done, {**read_json(done), "model_sha256": "0" * 64})
    (tmp_path / "run" / "recipe.yaml").unlink()
    with pytest.raises(UsageError) as caught:
        train_recipe(starts, table, tmp_path / "run", ["plain"], threads=1)
    assert [line.partition(": ")[0] for line in caught.value.details] == ["pupil"]
    assert "pupil: teacher_sha256: " in caught.value.details[0]
    # One that is away is trained again, and its pupil stays.
    shutil.rmtree(tmp_path / "run" / "conv")
    again = train_recipe(starts, table, tmp_path / "run", ["conv", "pupil"], folds=[0], threads=1)
    assert fold_bytes(again.path, "conv") == fold_bytes(run.path, "conv")


def test_feature_maps_put_tokens_in_their_places(starts: Recipe) -> None:
    vit = Classifier(network_of(starts.members["plain"]), build_backbone("test_vit")).eval()
    x = torch.zeros(1, 3, 64, 64)
    x[:, :, :16, 48:] = 1  # the upper right corner
    with torch.no_grad():
        moved = (feature_map(vit, x) - feature_map(vit, torch.zeros_like(x))).norm(dim=1)[0]
    assert moved.shape == (4, 4) and int(moved.argmax()) == 3
