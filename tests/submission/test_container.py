"""Building and saving the image: what is staged, which commands are given, what the files of the image agree on.

A stand-in for the engine on PATH shows the words it is called with; the real engine runs in continuous integration.
"""

from __future__ import annotations

import gzip
import io
import re
import stat
import subprocess
import tarfile
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from midog.bundle import open_bundle
from midog.cli import run
from midog.errors import MidogError, UsageError
from submission import container, engine
from submission.challenge import TRACK2
from submission.inference import read_options
from submission.trial.runners import Conditions

ROOT = Path(__file__).parents[2]


def test_takes_the_engine_that_answers(engines, monkeypatch):
    assert engine.find_engine().name == "docker" and engine.find_engine("podman").name == "podman"
    monkeypatch.setenv("FAKE_DEAD", "docker")  # the command is there, its daemon is not
    assert engine.find_engine().name == "podman"
    monkeypatch.setenv("FAKE_DEAD", "docker podman")
    with pytest.raises(MidogError, match="--no-engine"):
        engine.find_engine()
    with pytest.raises(UsageError, match="unknown engine: dokcer"):
        engine.find_engine("dokcer")


def test_builds_with_the_arguments_of_the_dockerfile(tiny_bundle):
    build = container.Build(
        base="b", digest="sha256:1", torch="index", cuda="12.8", api="invoke", time_budget=240, submission="s1"
    )
    words = container.build_command(engine.Engine("podman"), "ctx", "t:1", build, "c0ffee")
    given = dict(word.split("=", 1) for word in words if "=" in word)
    assert words[:2] == ["podman", "build"] and words[-1] == "ctx" and "linux/amd64" in words
    assert given == {
        "BASE": "b",
        "DIGEST": "sha256:1",
        "WEIGHTS": "baked",
        "TORCH": "index",
        "CUDA": "12.8",
        "API": "invoke",
        "TIME_BUDGET": "240",
        "SUBMISSION": "s1",
        "COMMIT": "c0ffee",
    }
    declared = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
    assert set(given) <= declared
    with pytest.raises(UsageError, match="--weights baked or none"):
        container.Build(weights="bakd")


@pytest.mark.parametrize("budget", [240, 0.25, 1e-7, 1_000_000, 1234567.5, 1e20])
def test_the_entry_point_reads_every_time_budget_that_is_built_in(budget):
    words = container.build_command(engine.Engine("docker"), "ctx", "t:1", container.Build(time_budget=budget), "c")
    built_in = next(word.removeprefix("TIME_BUDGET=") for word in words if word.startswith("TIME_BUDGET="))
    assert read_options(["--time-budget", built_in]).time_budget == budget


@pytest.mark.parametrize("budget", ["0", "-5", "nan", "inf"])
def test_a_time_budget_that_no_job_could_keep_is_refused(tiny_bundle, capsys, budget):
    assert run(["container", "build", str(tiny_bundle), f"--time-budget={budget}", "--dry-run"]) == 2
    assert f"--time-budget {budget}" in capsys.readouterr().err


@pytest.mark.parametrize("weights", container.WEIGHTS)
def test_stages_what_is_named_and_nothing_else(tiny_bundle, weights):
    bundle = open_bundle(tiny_bundle)
    with container.stage(bundle, weights) as context:
        names = {path.name for path in context.iterdir()}
        assert names == {*container.FILES, *container.PACKAGES, "model"}
        assert not list(context.rglob("__pycache__"))
        assert all(
            stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644) for path in context.rglob("*")
        )
        if weights == "baked":
            assert open_bundle(context / "model").digest == bundle.digest
        else:
            assert not list((context / "model").iterdir())
    assert not context.exists()


def test_stages_a_commit_without_what_is_not_committed(tiny_bundle, monkeypatch, tmp_path):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in (*container.FILES, *container.PACKAGES):
        (checkout / name).symlink_to(ROOT / name) if (ROOT / name).is_dir() else (checkout / name).write_text("x")
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "Dockerfile"], ["commit", "-qm", "one"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(container, "ROOT", checkout)
    with container.stage(open_bundle(tiny_bundle), "none", "v1") as context:
        assert {path.name for path in context.iterdir()} == {"Dockerfile", "model"}
    with pytest.raises(UsageError, match="name a tag"), container.stage(open_bundle(tiny_bundle), "none", "v2"):
        pass


def test_build_and_save_by_command(engines, tiny_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["container", "build", str(tiny_bundle), "--submission", "s1", "--engine-arg=--network=host"]) == 0
    built = next(call for call in engines() if call[1] == "build")
    assert built[0] == "docker" and "--network=host" in built and "SUBMISSION=s1" in built
    assert f"sha256:{'ab' * 32}" in capsys.readouterr().err
    saved = container.save_image(engine.Engine("podman"), "midog:latest", tmp_path / "image.tar.gz")
    assert gzip.decompress(saved.read_bytes()) == b"an image" * 1000
    assert ["podman", "save", "--format", "docker-archive", "midog:latest"] in engines()
    # What the fake engine saves is no archive: the upload check says so, and the ledger stays empty.
    assert run(["container", "save", str(tiny_bundle), "--engine", "podman", "-o", "other.tar.gz"]) == 1
    assert "A1   fail" in capsys.readouterr().out and not Path("submissions.jsonl").exists()


def test_a_failed_save_leaves_nothing(engines, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SAVE", "3")
    with pytest.raises(MidogError, match="save"):
        container.save_image(engine.Engine("docker"), "midog:latest", tmp_path / "image.tar.gz")
    assert not list(tmp_path.glob("*image*"))
    with pytest.raises(UsageError, match=r"-o image\.tar\.gz"):
        container.save_image(engine.Engine("docker"), "midog:latest", tmp_path / "image.tar")


def test_dry_runs_print_commands_and_run_none(engines, tiny_bundle, capsys):
    for words, shown in (
        (["build"], "docker build"),
        (["test"], "docker run --rm"),
        (["save"], "docker save midog:latest | gzip -n -1 > image.tar.gz"),
    ):
        assert run(["container", *words, str(tiny_bundle), "--dry-run"]) == 0
        assert capsys.readouterr().out.startswith(shown)
    assert not engines()
    assert run(["container", "build"]) == 2, "the bundle has to be named"


def test_a_job_runs_under_every_limit():
    flags = engine.contract_flags(Conditions(model=Path("/b"), environment={"MIDOG_USE": "fast"}), "n", "podman")
    pairs = set(pairwise(flags))
    assert {("--network", "none"), ("--cap-drop", "ALL"), ("--security-opt", "no-new-privileges")} <= pairs
    assert {"--read-only", "--read-only-tmpfs=false"} <= set(flags)
    assert ("--ulimit", f"data={15 << 30}:{15 << 30}") in pairs and ("--env", "MIDOG_USE=fast") in pairs
    assert ("--volume", f"/b:{TRACK2.uploaded_model}:ro") in pairs
    assert "--read-only-tmpfs=false" not in engine.contract_flags(Conditions(), "n", "docker")


def test_the_image_has_the_versions_of_the_lock():
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE))
    lean = dict(
        re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements-container.txt").read_text(), flags=re.MULTILINE)
    )
    assert lean.items() <= pinned.items() and not {"torch", "torchvision"} & set(lean)
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"TORCH_VERSION={pinned['torch']}\n" in dockerfile
    assert f"TORCHVISION_VERSION={pinned['torchvision']}\n" in dockerfile
    base = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[<>=]", line)[0].lower() for line in base} - {"torch", "torchvision"}
    assert names <= set(lean)


def test_label_and_handler_read_the_same_argument():
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"{TRACK2.api_label}=${{API}}" in dockerfile and f"{TRACK2.api_variable}=${{API}}" in dockerfile
    assert dockerfile.rstrip().endswith('ENTRYPOINT ["/opt/venv/bin/python", "/opt/app/inference.py"]')


def test_an_archive_of_git_holds_no_weights():
    done = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no git checkout here")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as contents:
        names = contents.getnames()
    assert "Dockerfile" in names and not any(name.startswith("model") for name in names)
