"""A real SLURM controller: an array of folds, a worker killed, the submitting process dead, a job sent away and back.

`eval "$(.ci/slurm start)"` gives one to a machine that has none.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from midog.cli import run as midog
from midog.data.patches import PatchTable
from midog.errors import UsageError
from midog.files import sha256_file
from midog.recipe import load_recipe
from midog.run import open_run
from midog.status import list_queue, read_log, submitted_jobs
from midog.training.cluster import FoldJob, notice, parameters
from midog.training.jobs import Job, read_failure
from midog.training.launch import Place, carry_out, plan_run, train_recipe
from midog.training.machine import Machine
from midog.training.slurm_settings import Slurm, parse_slurm

PATIENCE = 300.0
"""Seconds to wait for anything: six people may share the machine."""


@pytest.fixture(scope="module")
def controller() -> Iterator[None]:
    """Skips where no SLURM answers; cancels what a failed test left in the queue."""
    if shutil.which("sbatch") is None:
        pytest.skip('no SLURM here: eval "$(.ci/slurm start)" starts one')
    if subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode:
        pytest.skip('no SLURM controller answers: eval "$(.ci/slurm start)" starts one')
    yield
    subprocess.run(["scancel", "--name=midog-six,midog-two,midog-first,midog-second"], check=False)


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def launch(recipe: Path, table: Path, run: Path) -> subprocess.Popen[str]:
    """The command that submits the folds of `run` and waits for them."""
    command = [sys.executable, "-m", "midog", "train", str(recipe), str(table), "-o", str(run)]
    return subprocess.Popen(
        [*command, "--slurm", "time=8:00:00,cpus=1,gpus=0,mem=600M"], stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What a command said that ended well."""
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, said
    return said


def weights(run: Path) -> dict[str, str]:
    return {str(path.relative_to(run)): sha256_file(path) for path in run.rglob("model.safetensors")}


@pytest.mark.usefixtures("controller")
def test_six_folds_on_a_cluster_give_the_weights_of_a_local_run_though_a_worker_is_killed(
    tmp_path: Path, recipe_path: Path, table_path: Path, table: PatchTable, capsys: pytest.CaptureFixture[str]
) -> None:
    text = recipe_path.read_text()
    recipe_path.write_text(f"folds: scanner\n{text}{text.splitlines()[-1].replace('micro', 'other')}\n")
    run, victim = tmp_path / "six", tmp_path / "six" / "micro" / "fold_1"
    submitting = launch(recipe_path, table_path, run)
    until(lambda: len(submitted_jobs(run)) == 6 and len(read_log(victim)) >= 2)
    worker = json.loads((victim / ".lock").read_text())
    os.kill(worker["pid"], signal.SIGKILL)
    assert not (victim / "done.json").exists(), "killed too late to prove anything"
    assert worker["job"] == submitted_jobs(run)["micro", 1]

    midog(["status", str(run), "--json"])
    rows = {(row["member"], row["fold"]): row for row in json.loads(capsys.readouterr().out)["folds"]}
    assert rows["other", "Scanner C"]["state"] == "queued"
    assert rows["other", "Scanner C"]["by"].startswith(f"SLURM job {submitted_jobs(run)['other', 2]}")
    running = [row["by"] for row in rows.values() if row["state"] == "running"]
    assert any("SLURM job" in by for by in running)

    said = finished(submitting)
    assert "6 folds submitted: SLURM job" in said
    assert "micro fold Scanner B: ended without a result, submitted again" in said
    assert said.count(": done in ") == 6
    assert open_run(run).status().finished and [line["epoch"] for line in read_log(victim)] == list(range(1, 21))
    train_recipe(load_recipe(recipe_path), table, tmp_path / "here", threads=1)
    assert len(weights(run)) == 6 and weights(run) == weights(tmp_path / "here")


@pytest.mark.usefixtures("controller")
def test_jobs_outlive_the_process_that_submitted_them_and_go_on_after_their_time_limit(
    tmp_path: Path, recipe_path: Path, table_path: Path, reference: Path
) -> None:
    """The time limit itself would take minutes: SLURM's signal for it is sent by hand, and what follows is real."""
    run, fold = tmp_path / "two", tmp_path / "two" / "micro" / "fold_0"
    submitting = launch(recipe_path, table_path, run)
    until(lambda: read_log(fold))
    job = submitted_jobs(run)["micro", 0]
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    submitting.kill()
    submitting.communicate()
    assert not (fold / "done.json").exists(), "signalled too late to prove anything"
    until(lambda: (list_queue(run) or {}).get(job) == ("PENDING", "BeginTime"))
    assert 1 <= len(read_log(fold)) < 20

    again = launch(recipe_path, table_path, run)
    time.sleep(4)  # SLURM lets nobody start a requeued job within its first seconds, and would hold it two minutes
    subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], check=True)
    said = finished(again)
    assert f"in the queue already: SLURM job {job}" in said and "submitted: " not in said
    assert submitted_jobs(run)["micro", 0] == job
    assert (fold / "job.log").read_text().count("== 2") == 2
    model = Path("micro", "fold_0", "model.safetensors")
    assert (run / model).read_bytes() == (reference / model).read_bytes()


@pytest.mark.usefixtures("controller")
def test_what_slurm_refuses_is_told_with_its_words(tmp_path: Path, recipe_path: Path, table: PatchTable) -> None:
    with pytest.raises(UsageError, match="SLURM refused the jobs") as caught:
        train_recipe(load_recipe(recipe_path), table, tmp_path / "run", slurm="partition=nowhere,time=1:00:00,gpus=0")
    assert any("nowhere" in line or "partition" in line for line in caught.value.details)
    assert submitted_jobs(tmp_path / "run") == {}


@pytest.mark.usefixtures("controller")
def test_the_runs_of_a_grid_wait_in_the_queue_together(tmp_path: Path, recipe_path: Path, table: PatchTable) -> None:
    """No job begins before those of both runs are there, or before it is clear that they will not be."""
    recipe, place = (
        load_recipe(recipe_path),
        Place(Machine(threads=1), (), Slurm(480, cpus=1, gpus=0, mem="600M"), None),
    )
    runs = [tmp_path / name for name in ("first", "second")]
    plans = [plan_run(recipe, table, run, place, folds=[0]) for run in runs]
    partition = subprocess.run(["sinfo", "-ho", "%R"], capture_output=True, text=True, check=True).stdout.split()[0]
    seen: list[bool] = []

    def turn(state: str) -> None:
        subprocess.run(["scontrol", "update", f"partitionname={partition}", f"state={state}"], check=True)

    def wait_and_open() -> None:
        deadline = time.monotonic() + 60
        while not all(map(submitted_jobs, runs)) and time.monotonic() < deadline:
            time.sleep(0.1)
        seen.append(all(map(submitted_jobs, runs)))
        turn("up")

    turn("down")
    opening = threading.Thread(target=wait_and_open)
    opening.start()
    try:
        carry_out(plans, place)
    finally:
        opening.join()
    assert seen == [True] and [plan.tally.trained for plan in plans] == [1, 1]


STAND_IN = """#!/bin/sh
# One thing of a cluster: jobs are taken, and done once those of two runs are there; the queue is always empty.
name=$(sed -n 's/#SBATCH --job-name=midog-//p' "$1")
echo "$name" >> {log}
if [ "$(sort -u {log} | wc -l)" = 2 ]; then
    for run in first second; do echo '{{"seconds": 1}}' > {runs}/$run/micro/fold_0/done.json; done
fi
echo Submitted batch job $(wc -l < {log})
"""


def test_the_folds_of_all_runs_are_submitted_before_any_is_waited_for(
    tmp_path: Path, recipe_path: Path, table: PatchTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts stand in for SLURM, which is not needed to see in which order it is asked."""
    (tmp_path / "bin").mkdir()
    scripts = {
        "sbatch": STAND_IN.format(log=tmp_path / "log", runs=tmp_path),
        "squeue": "#!/bin/sh\n",
        "srun": "#!/bin/sh\n",
    }
    for name, text in scripts.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    recipe, place = load_recipe(recipe_path), Place(Machine(threads=1), (), Slurm(480, gpus=0), None)
    plans = [plan_run(recipe, table, tmp_path / name, place, folds=[0]) for name in ("first", "second")]
    for plan in plans:
        plan.missing[0].folder.mkdir(parents=True)
    carry_out(plans, place)
    assert (tmp_path / "log").read_text().split() == ["first", "second"]
    assert [plan.tally.trained for plan in plans] == [1, 1] and not any(plan.tally.failures for plan in plans)


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something called sbatch on PATH: reading settings asks for no more."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("sbatch")
@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("time=90", Slurm(90)),
        ("partition=gpu,time=8:00:00", Slurm(480, "gpu")),
        ("time=2-12:00:01, mem=32G,cpus=8", Slurm(3601, cpus=8, mem="32G")),
        ("time=0:30:00,gpus=0,mem=512M", Slurm(30, gpus=0, mem="512M")),
        ("time=60,account=a,qos=long,constraint=h100", Slurm(60, account="a", qos="long", constraint="h100")),
    ],
)
def test_what_a_job_asks_for(text: str, meant: Slurm) -> None:
    assert parse_slurm(text) == meant


@pytest.mark.usefixtures("sbatch")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("partition=gpu", "no time limit"),
        ("time=8:00", "no time limit"),  # SLURM reads eight minutes, people mean hours
        ("time=0", "at least one minute"),
        ("tme=60", "did you mean time?"),
        ("time", "KEY=VALUE"),
        ("time=60,gpus=4", "a fold trains on one GPU"),
        ("time=60,cpus=many", "no whole number"),
        ("time=60,mem=32", "no amount of memory"),
    ],
)
def test_settings_that_cannot_be_read(text: str, says: str) -> None:
    with pytest.raises(UsageError, match="fix: ") as caught:
        parse_slurm(text)
    assert says in str(caught.value)


@pytest.mark.usefixtures("sbatch")
def test_a_dry_run_says_what_the_cluster_will_be_asked_for(
    recipe_path: Path, table_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["train", str(recipe_path), str(table_path), "--dry-run", "--slurm"]
    assert midog([*typed, "partition=gpu,tme=60"]) == 2
    assert "did you mean time?" in capsys.readouterr().err
    assert midog([*typed, "partition=gpu,time=8:00:00,cpus=64"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert "partition=gpu, cpus=64, gpus=1; requeued and continued after 480 min" in said and "this machine's" in said
    assert midog([*typed, "partition=gpu,time=8:00:00,cpus=64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slurm"]["time"] == 480


def test_a_machine_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no sbatch") as caught:
        parse_slurm("time=60")
    assert "leave --slurm out" in caught.value.fix


def test_what_sbatch_is_told() -> None:
    """What a script says, as submitit writes it; SLURM itself reads it in the tests above."""
    from submitit.slurm.slurm import _make_sbatch_string

    words = parameters(Slurm(480, "gpu", mem="32G", account="lab"), Path("a run"))
    script = _make_sbatch_string("true", "logs", **words)
    for line in ("partition=gpu", "time=480", "mem=32G", "gpus-per-node=1", "cpus-per-task=4", "account=lab"):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --requeue\n" in script and "--job-name=midog-a_run\n" in script
    assert f"--signal=USR2@{notice(480)}\n" in script and notice(2) < 60
    assert "--cpus-per-task=4 true" in script.splitlines()[-1], "srun does not take it over from sbatch"


@pytest.mark.parametrize(("limit", "goes_on"), [(480, True), (0, False)])
def test_a_job_that_is_sent_away_comes_back_unless_its_whole_time_brought_no_epoch(
    tmp_path: Path, limit: int, goes_on: bool
) -> None:
    job = Job("m", 0, "0", tmp_path, 3)
    work = FoldJob(job, [sys.executable, "-c", "import time; time.sleep(600)"], {}, limit)
    worker = threading.Thread(target=work)
    worker.start()
    until(lambda: work.pid)
    sent = work.checkpoint()
    worker.join(timeout=30)
    with pytest.raises(ProcessLookupError):
        os.kill(work.pid, 0)
    failure = read_failure(job)
    assert (sent is not None, failure is None) == (goes_on, goes_on)
    if failure:
        assert "no epoch was finished" in failure.problem and "time=" in failure.fix
    else:
        assert sent is not None and sent.function.command == work.command
