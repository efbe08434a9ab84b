"""Training one fold: the same weights whatever happens on the way."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from midog.data.patches import PatchTable
from midog.errors import MidogError, WeightsError
from midog.files import lock, read_json
from midog.recipe import Recipe, load_recipe
from midog.run import open_run
from midog.status import read_log
from midog.training.checkpoint import read_header
from midog.training.folder import Busy
from midog.training.launch import train_recipe
from midog.training.machine import Machine, claim

TRAIN = """
import sys
from pathlib import Path
from midog.data.patches import read_table
from midog.recipe import load_recipe
from midog.training.launch import train_recipe
train_recipe(load_recipe(sys.argv[1]), read_table(sys.argv[2]), Path(sys.argv[3]), folds=[0], threads=1)
"""


def products(run: Path, member: str = "micro", k: int = 0) -> tuple[bytes, bytes]:
    """The bytes of the fold model and of its OOF table."""
    folder = run / member / f"fold_{k}"
    return (folder / "model.safetensors").read_bytes(), (folder / "oof.csv").read_bytes()


def wait_for(path: Path, alive: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        if alive.poll() is not None:
            pytest.fail(f"training ended early: {alive.communicate()[1].decode()[-2000:]}")
        time.sleep(0.002)


def test_a_fold_killed_at_a_random_moment_ends_in_the_same_bytes(
    tmp_path: Path, recipe_path: Path, table_path: Path, table: PatchTable, reference: Path
) -> None:
    run = tmp_path / "run"
    folder = run / "micro" / "fold_0"
    command = [sys.executable, "-c", TRAIN, str(recipe_path), str(table_path), str(run)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    wait_for(folder / "last.safetensors", process)
    time.sleep(random.uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "done.json").exists(), "killed too late to prove anything"
    epoch = read_header(folder / "last.safetensors").epoch
    assert 1 <= epoch <= 20

    train_recipe(load_recipe(recipe_path), table, run, folds=[0], threads=1)
    assert products(run) == products(reference)
    assert [line["epoch"] for line in read_log(folder)] == list(range(1, 21))
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "model.safetensors",
        "oof.csv",
        "log.jsonl",
        "done.json",
    }


@pytest.fixture
def control_c_is_heard() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored, and continuous integration may be one: hear it anyway."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("control_c_is_heard")
def test_control_c_leaves_a_fold_that_goes_on(
    tmp_path: Path, recipe: Recipe, table: PatchTable, reference: Path
) -> None:
    folder = tmp_path / "run" / "micro" / "fold_0"

    def interrupt() -> None:
        while not (folder / "last.safetensors").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, table, tmp_path / "run", folds=[0], threads=1)
        time.sleep(5)
    status = open_run(tmp_path / "run").status().members[0].folds[0]
    assert status.state == "stopped" and 1 <= status.epoch <= 20
    assert status.seconds_left is not None
    train_recipe(recipe, table, tmp_path / "run", folds=[0], threads=1)
    assert products(tmp_path / "run") == products(reference)


def test_the_same_command_twice_does_nothing(
    tmp_path: Path, recipe: Recipe, table: PatchTable, reference: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (reference / "micro").rglob("*") if path.name != ".lock"}
    said: list[str] = []
    train_recipe(recipe, table, reference, folds=[0], threads=1, report=said.append)
    after = {path: path.stat().st_mtime_ns for path in (reference / "micro").rglob("*") if path.name != ".lock"}
    assert after == before
    assert said == ["micro fold 0: done already"]


def test_another_seed_gives_other_weights(
    tmp_path: Path, recipe_path: Path, table: PatchTable, reference: Path
) -> None:
    train_recipe(load_recipe(recipe_path, ["seed=1"]), table, tmp_path / "run", folds=[0], threads=1)
    assert products(tmp_path / "run")[0] != products(reference)[0]


def test_background_workers_change_nothing(tmp_path: Path, recipe: Recipe, table: PatchTable, reference: Path) -> None:
    from midog.training.machine import Machine

    machine = Machine(threads=1, workers=3)
    train_recipe(recipe, table, tmp_path / "run", folds=[0], machine=machine)
    assert products(tmp_path / "run") == products(reference)


def test_a_busy_fold_is_skipped_and_alone_an_error(tmp_path: Path, recipe: Recipe, table: PatchTable) -> None:
    run, said = tmp_path / "run", []
    with lock(run / "micro" / "fold_0" / ".lock", "held by the test"):
        with pytest.raises(Busy, match=r"another process trains micro fold 0"):
            train_recipe(recipe, table, run, folds=[0], threads=1)
        train_recipe(recipe, table, run, threads=1, report=said.append)
        states = [fold.state for fold in open_run(run).status().members[0].folds]
        assert states == ["running", "done"]
    assert said[0].startswith("micro fold 0: skipped")


def test_a_damaged_checkpoint_says_what_to_remove(tmp_path: Path, recipe: Recipe, table: PatchTable) -> None:
    last = tmp_path / "run" / "micro" / "fold_0" / "last.safetensors"
    last.parent.mkdir(parents=True)
    last.write_bytes(b"\x08\0\0\0\0\0\0\0 nothing")
    with pytest.raises(WeightsError) as caught:
        train_recipe(recipe, table, tmp_path / "run", folds=[0], threads=1)
    assert f"{last} cannot be continued" in caught.value.problem
    assert caught.value.fix.startswith(f"rm {last}")


def test_oof_covers_every_training_patch_once_and_fits_the_saved_model(
    tmp_path: Path, recipe: Recipe, table: PatchTable, reference: Path
) -> None:
    from augment.views import VIEW_NAMES
    from midog.data.pixels import open_pixels
    from midog.models.inference import Inference
    from midog.models.network import Network
    from midog.models.predict import predict_logits

    train_recipe(recipe, table, reference, threads=1)
    run = open_run(reference)
    oof = run.oof("micro")
    assert oof.ids == table.ids
    assert oof.folds.tolist() == table.folds.tolist()
    model = Inference(Network.from_dict(run.network("micro")), None).switch(
        run.fold_folder("micro", 1) / "model.safetensors"
    )
    rows = np.flatnonzero(table.folds == 1)
    with claim(Machine(threads=1)):  # other threads add up in another order
        again = predict_logits(model, open_pixels(table.subset(rows)), VIEW_NAMES, "cpu")
    assert np.array_equal(again, oof.logits[rows])


def test_the_seconds_of_a_fold_hold_its_scoring(recipe: Recipe, table: PatchTable, reference: Path) -> None:
    train_recipe(recipe, table, reference, threads=1)
    folder = open_run(reference).fold_folder("micro", 0)
    assert read_json(folder / "done.json")["seconds"] > sum(line["seconds"] for line in read_log(folder))


def test_held_out_patches_are_never_touched(tmp_path: Path, recipe: Recipe, table: PatchTable) -> None:
    from dataclasses import replace

    cases = sorted(set(table.column("case")))[:4]
    held = table.with_patches(
        # The files of the test side do not even exist.
        replace(p, split="test", fold=None, path="/nowhere.png") if p.case in cases else p
        for p in table
    )
    run = train_recipe(recipe, held, tmp_path / "run", threads=1)
    oof = run.oof("micro")
    assert len(oof) == sum(patch.case not in cases for patch in table)
    assert run.manifest["held_out_patches"] == len(table) - len(oof)
    assert len(run.manifest["training_pixels"]) == len(oof)


def test_a_loss_that_explodes_is_an_error_with_a_fix(tmp_path: Path, recipe_path: Path, table: PatchTable) -> None:
    recipe = load_recipe(recipe_path, ["each.training.lr=1e30", "each.training.clip=0"])
    with pytest.raises(MidogError) as caught:
        train_recipe(recipe, table, tmp_path / "run", folds=[0], threads=1)
    assert "no longer a finite number" in str(caught.value)
    failed = read_json(tmp_path / "run" / "micro" / "fold_0" / "failed.json")
    assert "--set members.micro.training.lr=" in failed["error"]


def test_the_checkpoint_is_one_plain_file(tmp_path: Path, recipe: Recipe, table: PatchTable) -> None:
    """Weights, moments, running mean and epoch agree because they are written at once."""
    from midog.training.checkpoint import Header, restore, save
    from midog.training.fold import start, train_epoch
    from midog.training.machine import Machine, claim
    from midog.training.patches import fold_patches
    from midog.training.source import gather

    member, source = recipe.members["micro"], gather(recipe, table)
    patches = fold_patches(member, 0, source.table, source.assignment, source.pixels)
    with claim(Machine(threads=1)) as resources:
        classifier, state = start(member, None, resources, 0)
        train_epoch(member, 0, 0, patches, classifier, state, resources)
        save(tmp_path / "last.safetensors", state, Header(1, 2.5, {"a": 1}))
        _, other = start(member, None, resources, 0)
        restore(tmp_path / "last.safetensors", other)
        save(tmp_path / "again.safetensors", other, Header(1, 2.5, {"a": 1}))
    assert (tmp_path / "last.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    with safe_open(tmp_path / "last.safetensors", "pt") as opened:
        kinds = {name.split(".")[0] for name in opened.keys()}  # noqa: SIM118
    assert kinds == {"model", "mean", "optimizer"}
