"""Folds as processes of their own: side by side, killed, failing, held by somebody else."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from midog.data.patches import PatchTable
from midog.errors import MidogError, UsageError, WeightsError
from midog.recipe import Recipe, load_recipe
from midog.run import fold_folder, open_run
from midog.status import read_log
from midog.training.folder import Busy, hold
from midog.training.jobs import ATTEMPTS, Job, Tally, fold_command, machine_options, read_failure
from midog.training.launch import train_recipe
from midog.training.machine import Machine
from midog.training.prepare import prepare_run
from midog.training.slots import choose_gpus, gpu_slots, train_in_slots
from midog.training.source import gather

CPU = {"CUDA_VISIBLE_DEVICES": ""}
ONE_THREAD = ["--threads", "1"]
SECOND = "  second: {backbone: test_vit, tune: full, image: {size: 64}}\n"


def jobs_of(recipe: Recipe, table: PatchTable, run: Path) -> list[Job]:
    """The run's files, and a job for each of its folds."""
    source = gather(recipe, table)
    prepare_run(recipe, table, source, run, None, recipe.members, {})
    return [
        Job(name, k, fold, fold_folder(run, name, k), member.training.epochs)
        for name, member in recipe.members.items()
        for k, fold in enumerate(source.assignment.names)
    ]


def kill_half_way(folder: Path, killed: list[int]) -> None:
    """Kill -9 whoever trains in `folder` as soon as two epochs are done."""
    while len(read_log(folder)) < 2:
        time.sleep(0.01)
    killed.append(json.loads((folder / ".lock").read_text())["pid"])
    os.kill(killed[0], signal.SIGKILL)
    assert not (folder / "done.json").exists(), "killed too late to prove anything"


def products(run: Path) -> dict[str, bytes]:
    found = [path for name in ("model.safetensors", "oof.csv") for path in run.rglob(name)]
    return {str(path.relative_to(run)): path.read_bytes() for path in found}


def test_two_slots_train_the_same_weights_though_a_process_is_killed(
    tmp_path: Path, recipe_path: Path, table: PatchTable
) -> None:
    recipe_path.write_text(recipe_path.read_text() + SECOND)
    recipe = load_recipe(recipe_path)
    run, said, killed = tmp_path / "run", list[str](), list[int]()
    jobs = jobs_of(recipe, table, run)
    killer = threading.Thread(target=kill_half_way, args=(jobs[1].folder, killed), daemon=True)
    killer.start()
    tally = Tally(run, len(jobs), said.append)
    train_in_slots(jobs, [CPU, CPU], lambda job: fold_command(job, run, ONE_THREAD), lambda job: tally)
    tally.close()
    killer.join()
    assert tally.trained == 4 and killed
    assert "micro fold 1: its process ended by signal 9; it is started again" in said
    assert jobs[1].log.read_text().count("== 2") == 2
    assert [line["epoch"] for line in read_log(jobs[1].folder)] == list(range(1, 21))

    train_recipe(recipe, table, tmp_path / "here", threads=1)
    assert len(products(run)) == 8 and products(run) == products(tmp_path / "here")


def test_an_error_is_told_and_not_tried_again(tmp_path: Path, recipe_path: Path, table: PatchTable) -> None:
    lost = tmp_path / "lost.safetensors"
    recipe_path.write_text(recipe_path.read_text() + f"  a_lost: {{backbone: test_vit, pretrained: {lost}}}\n")
    recipe = load_recipe(recipe_path)
    run = tmp_path / "run"
    *_, wrong, late = jobs_of(recipe, table, run)

    def command(job: Job) -> list[str]:
        strange = ["--member", "nobody"] if job is late else []
        return fold_command(job, run, [*ONE_THREAD, *strange])

    tally = Tally(run, 2, print)
    train_in_slots([wrong, late], [CPU], command, lambda job: tally)
    assert [job.log.read_text().count("== 2") for job in (wrong, late)] == [1, 1]
    assert tally.failures[wrong].kind == "WeightsError" and str(lost) in tally.failures[wrong].problem
    # This one ended before it came to its fold: the reason is in what it said.
    assert tally.failures[late].kind == "UsageError" and "unknown member: nobody" in tally.failures[late].problem
    assert read_failure(late) == tally.failures[late]
    with pytest.raises(MidogError, match="2 of 2 folds failed"):
        tally.close()
    del tally.failures[late]
    with pytest.raises(WeightsError, match="1 of 2 folds failed"):
        tally.close()
    states = {fold.name: fold for fold in open_run(run).status().members[1].folds}
    assert [fold.state for fold in states.values()] == ["failed", "failed"]


def test_a_process_that_always_dies_is_given_up(tmp_path: Path) -> None:
    job = Job("m", 0, "0", tmp_path / "m" / "fold_0", 1)
    tally = Tally(tmp_path, 1, print)
    die = [
        sys.executable,
        "-c",
        "import os, signal; print('so long', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
    ]
    train_in_slots([job], [CPU], lambda job: die, lambda job: tally)
    assert job.log.read_text().count("so long") == ATTEMPTS
    assert "signal 9" in tally.failures[job].problem and str(job.log) in tally.failures[job].fix
    assert read_failure(job) == tally.failures[job]


STARTER = """
import sys, time
from pathlib import Path
from midog.training.jobs import Job, Tally
from midog.training.slots import train_in_slots
folder = Path(sys.argv[1])
jobs = [Job("m", k, str(k), folder / str(k), 1) for k in (0, 1)]
sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
train_in_slots(jobs, [{}, {}], lambda job: [sys.executable, "-c", sleep], lambda job: Tally(folder, 2, print))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_processes_end_with_the_one_that_started_them(tmp_path: Path, number: signal.Signals) -> None:
    def hear() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with it ignored

    parent = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path)], stderr=subprocess.DEVNULL, preexec_fn=hear
    )
    logs = [tmp_path / str(k) / "job.log" for k in (0, 1)]
    while not all(log.exists() and log.read_text().count("\n") == 2 for log in logs):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(number)
    parent.wait(timeout=30)
    for log in logs:
        with pytest.raises(ProcessLookupError):
            os.kill(int(log.read_text().splitlines()[-1]), 0)


def test_the_second_process_is_told_who_holds_the_fold(tmp_path: Path, recipe: Recipe, table: PatchTable) -> None:
    run = tmp_path / "run"
    me = f"process {os.getpid()} on {socket.gethostname()}"
    with hold(run / "micro" / "fold_0"):
        with pytest.raises(Busy) as caught:
            train_recipe(recipe, table, run, folds=[0], threads=1)
        assert caught.value.details == (f"micro fold 0: {me}",)
        found = open_run(run).status().members[0].folds[0]
        assert (found.state, found.by) == ("running", me)
        # Also where the fold is a process of its own.
        (job, _), tally = jobs_of(recipe, table, run), Tally(run, 1, print)
        train_in_slots([job], [CPU], lambda job: fold_command(job, run, ONE_THREAD), lambda job: tally)
        assert tally.busy == {job: me} and not tally.failures
    assert open_run(run).status().members[0].folds[0].by == ""


def test_a_run_that_says_the_same_is_not_written_again(tmp_path: Path, recipe: Recipe, table: PatchTable) -> None:
    """Processes that train the folds of one run side by side all begin like this."""
    from midog.data.patches import read_table

    run, names = tmp_path / "run", ("recipe.yaml", "manifest.json", "patches.csv")
    jobs_of(recipe, table, run)
    before = [(run / name).stat().st_mtime_ns for name in names]
    jobs_of(load_recipe(run / "recipe.yaml"), read_table(run / "patches.csv"), run)
    assert [(run / name).stat().st_mtime_ns for name in names] == before
    jobs_of(recipe, table.subset(range(1, len(table))), run)
    assert all((run / name).stat().st_mtime_ns > then for name, then in zip(names, before, strict=True))


def test_gpus_that_do_not_exist_are_named() -> None:
    import torch

    count = torch.cuda.device_count()
    assert choose_gpus(None) == tuple(range(count))
    with pytest.raises(UsageError, match=rf"there is no GPU {count + 6}; this machine shows"):
        choose_gpus([count + 6])


def test_a_slot_shows_its_process_one_gpu_of_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_slots([0, 2]) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "2"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5a0b")
    assert gpu_slots([1, 0]) == [{"CUDA_VISIBLE_DEVICES": "GPU-5a0b"}, {"CUDA_VISIBLE_DEVICES": "3"}]


def test_a_process_is_told_about_the_machine(tmp_path: Path) -> None:
    assert machine_options(Machine(), None) == []
    told = machine_options(Machine(threads=3, precision="float32"), Path("weights"))
    assert told == ["--threads", "3", "--precision", "float32", "--pretrained", str(Path.cwd() / "weights")]
