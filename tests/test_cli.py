"""The command line: a participant's six commands on drawn patches, what goes wrong with them, and how they look."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from augment.views import VIEW_NAMES
from midog.cli import run
from midog.data.synthetic import draw
from midog.files import sha256_file

SMALL = ("--set", "each.image.size=32", "--set", "each.training.epochs=1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A participant's folder with drawn patches, where the first four commands were typed."""
    folder = tmp_path_factory.mktemp("home")
    draw(folder / "drawn", cases=24, per_case=4)
    before = Path.cwd()
    os.chdir(folder)
    try:
        check = ["check", "drawn", "-o", "patches.csv", "--folds", "grouped:2:0", "--hold-out", "0.25"]
        assert run(check) == 0
        assert run(["train", "smoke", "patches.csv", "-o", "runs/smoke", *SMALL]) == 0
        assert run(["blend", "runs/smoke", "-o", "blends/smoke", "--trials", "20"]) == 0
        assert run(["bundle", "blends/smoke", "-o", "model.tar.gz"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def test_the_last_two_commands_score_the_held_out_cases(at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "model.tar.gz", "patches.csv", "-o", "out.csv", "--split", "test"]) == 0
    with Path("out.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["patch_id", "logit", "confidence", "class"]
    capsys.readouterr()
    assert run(["evaluate", "out.csv", "patches.csv", "--split", "test", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["aggregates"]
    right = {"atypical": [0, 0], "normal": [0, 0]}
    with Path("patches.csv").open() as handle:
        truth = {row["patch_id"]: row["label"] for row in csv.DictReader(handle) if row["split"] == "test"}
    assert set(truth) == {row["patch_id"] for row in rows}
    for row in rows:
        label = {"1": "atypical", "0": "normal"}.get(truth[row["patch_id"]], truth[row["patch_id"]])
        right[label][0] += row["class"] == label
        right[label][1] += 1
    shares = [hit / n for hit, n in right.values()]
    assert metrics["overall_balanced_accuracy"] == pytest.approx(sum(shares) / 2)


def test_evaluate_comes_next_only_where_there_are_labels(at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = Path("images")
    if not images.is_dir():
        images.mkdir()
        shutil.copy(next(Path("drawn").rglob("*.png")), images / "one.png")
    Path("bare.csv").write_text(f"path,label\n{images / 'one.png'},\n")

    def said(what: str, *more: str) -> str:
        capsys.readouterr()
        assert run(["predict", "model.tar.gz", what, "-o", "next.csv", *more]) == 0
        return capsys.readouterr().err.strip()

    assert said("patches.csv", "--split", "test").endswith("next: midog evaluate next.csv patches.csv")
    assert run(["evaluate", "next.csv", "patches.csv"]) == 0
    for what in ("images", str(images / "one.png"), "bare.csv"):
        assert said(what).endswith("wrote next.csv"), what


def test_training_patches_are_recognised(at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "model.tar.gz", "patches.csv", "-o", "all.csv"]) == 0
    run(["evaluate", "all.csv", "patches.csv"])
    assert "seen in training" in capsys.readouterr().out


def test_the_same_commands_again_change_nothing(at_home: Path) -> None:
    model = Path("runs/smoke/vit/fold_0/model.safetensors")
    before = sha256_file(model), sha256_file("model.tar.gz")
    assert run(["train", "smoke", "patches.csv", "-o", "runs/smoke", *SMALL]) == 0
    assert run(["blend", "runs/smoke", "-o", "blends/smoke", "--trials", "20"]) == 0
    assert run(["bundle", "blends/smoke", "-o", "model.tar.gz"]) == 0
    assert (sha256_file(model), sha256_file("model.tar.gz")) == before


def test_blend_prints_scores_and_what_the_threshold_costs(at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["blend", "runs/smoke", "-o", "blends/smoke", "--trials", "20"]) == 0
    out = capsys.readouterr().out
    assert "domains that the threshold never saw" in out and "worst of domains" in out and "across*" in out
    assert run(["blend", "runs/smoke", "-o", "blends/smoke", "--trials", "20", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {"rows", "thresholds"} == set(content) and content["thresholds"]["all"]["domain"] == "all"


def test_status_compare_and_report(at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "runs/smoke", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["member"] for row in rows] == ["vit", "convnext"] and rows[0]["n"] == 72
    assert run(["status"]) == 0
    assert run(["compare", "runs/smoke:vit", "runs/smoke:vit"]) == 0
    assert "noise" in capsys.readouterr().out
    assert run(["report", "blends/smoke"]) == 0
    assert "<html" in Path("blends/smoke/report.html").read_text(encoding="utf-8")


def test_a_changed_recipe_is_refused_for_a_run_that_exists(at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = [*SMALL, "--set", "members.vit.training.lr=0.5"]
    assert run(["train", "smoke", "patches.csv", "-o", "runs/smoke", *changed]) == 2
    assert "training.lr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "code", "says"),
    [
        (["trian"], 2, "midog train --help"),
        (["train", "smoke", "patches.csv", "--lr", "1"], 2, "--set each.training.lr="),
        (["train", "smoke", "patches.csv", "--resume"], 2, "repeat the same command"),
        (["train", "smok", "patches.csv"], 2, "smoke"),
        (["train", "patches.csv", "recipe.yaml"], 2, "swapped"),
        (["predict", "patches.csv", "model.tar.gz", "-o", "out.csv"], 2, "swapped"),
        (["predict", "model.tar.gz", "patches.csv", "-o", "o.csv", "--use", "ful"], 2, "full"),
        (["check", "nowhere"], 3, "nowhere"),
        (["check", "data/AMi-Br"], 3, "midog data get amibr"),
        (["check", "AtNorM-MD"], 3, "midog data get atnorm"),
        (["check", "MIDOG25"], 3, "Zenodo"),
        (["train", "smoke", "nowhere.csv"], 3, "midog check DATA -o nowhere.csv"),
        (["bundle", "nowhere"], 3, "midog blend RUN -o nowhere"),
        (["predict", "defualt", "patches.csv", "-o", "out.csv"], 4, "did you mean default"),
        (["evaluate", "nowhere.csv", "patches.csv"], 3, "midog predict BUNDLE patches.csv -o nowhere.csv"),
    ],
)
def test_a_mistake_gets_its_fix_and_its_exit_code(
    at_home: Path, capsys: pytest.CaptureFixture[str], typed: list[str], code: int, says: str
) -> None:
    assert run(typed) == code
    error = capsys.readouterr().err
    assert says in error and "fix:" in error


def test_a_check_that_finds_problems_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.csv").write_text("path,label\nabsent.png,atypical\n")
    assert run(["check", str(tmp_path / "bad.csv"), "-o", str(tmp_path / "patches.csv")]) == 1
    assert "missing" in capsys.readouterr().out
    assert not (tmp_path / "patches.csv").exists()


def test_help_imports_nothing_heavy_and_is_grouped() -> None:
    heavy = ("torch", "numpy", "scipy", "sklearn", "timm", "optuna", "pydantic", "albumentations", "cv2", "PIL")
    code = f"import sys; from midog.cli import run; run(['--help']); print(set({heavy}) & set(sys.modules))"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert text.strip().endswith("set()")
    places = [text.index(f"│ {name} ") for name in ("check", "train", "blend", "bundle")]
    assert places == sorted(places)


def test_a_folder_of_ones_own_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "augment").mkdir()
    (tmp_path / "augment" / "__init__.py").write_text("raise SystemExit('the wrong augment')\n")
    command = [sys.executable, "-m", "midog", "recipes", "list"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "the wrong augment" not in done.stderr and "cpu-small" in done.stdout


def test_python_offers_the_same(at_home: Path) -> None:
    import numpy as np

    import midog

    bundle = midog.load_bundle("model.tar.gz", use="full")
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    result = bundle.predict(images, mpp=0.25)
    rows = result.table()
    assert len(rows) == 3 and all(0 <= row["confidence"] <= 1 for row in rows)
    assert midog.open_run("runs/smoke").oof("vit").logits.shape[1] == len(VIEW_NAMES)
    with pytest.raises(AttributeError, match="load_bundle"):
        _ = midog.no_such_name


def test_blend_runs_names_every_setting_that_it_takes() -> None:
    from dataclasses import fields

    from ensemble.fit import BlendSettings
    from midog import api

    assert [item.name for item in fields(BlendSettings) if f"`{item.name}`" not in str(api.blend_runs.__doc__)] == []


def test_the_demo_finds_ami_br_in_the_folder_of_data_or_as_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found in neither place is said; ../shared/data comes next, so that nothing is downloaded here."""
    from midog.demo import find_patches

    said: list[str] = []
    own, others = tmp_path / "own" / "amibr", tmp_path / "shared" / "data" / "amibr"
    for folder in (own, others, tmp_path / "empty", tmp_path / "work"):
        folder.mkdir(parents=True)
        (folder / "AMI-BR.csv").touch() if folder.name == "amibr" else None
    monkeypatch.chdir(tmp_path / "work")
    for place in (own.parent, own):
        monkeypatch.setenv("MIDOG_DATA", str(place))
        assert find_patches(tmp_path, said.append).data == own and said == []
    monkeypatch.setenv("MIDOG_DATA", str(tmp_path / "empty"))
    assert find_patches(tmp_path, said.append).data.resolve() == others
    assert len(said) == 1 and str(tmp_path / "empty") in said[0] and "amibr" in said[0]


def test_ctrl_c_says_that_nothing_is_lost(home: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "midog", "train", "smoke", str(home / "patches.csv"), "-o", str(tmp_path / "run")]
    command += ["--set", "each.image.size=32", "--set", "each.training.epochs=10000"]
    hear = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # background jobs start with it ignored
    training = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear)
    while not list(tmp_path.glob("run/*/fold_0/last.safetensors")):
        assert training.poll() is None
        time.sleep(0.05)
    training.send_signal(signal.SIGINT)
    said = training.communicate(timeout=60)[1]
    assert training.returncode == 130 and "stopped: nothing is lost, the same command continues" in said
    assert "Traceback" not in said
