"""The container's entry point on real files: what comes out, what stays out, and how it fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bundle_fixture import PREVALENCE, draw_patches
from PIL import Image

from midog.bundle import open_bundle
from submission.challenge import TRACK2
from submission.inference import main
from submission.predict import predict_what
from submission.stack import read_job, write_job, write_stack

ROOT = Path(__file__).parents[2]
BANNED = ["peft", "albumentations", "cv2", "sklearn", "optuna", "scipy", "pandas", "pydantic", "matplotlib", "rich"]
BANNED += ["ruamel", "typer", "transformers"]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("MODEL_DIR", "USE", "MEMBERS", "VIEWS"):
        monkeypatch.delenv(f"MIDOG_{name}", raising=False)


@pytest.fixture
def answer(tmp_path, tiny_folder, capsys):
    """Run the entry point in this process: (status, entries, stdout, stderr)."""

    def run(job, model=tiny_folder, output=None):
        output = output or tmp_path / "output"
        status = main(["--input", str(job), "--output", str(output), *(["--model", str(model)] if model else [])])
        streams = capsys.readouterr()
        path = output / TRACK2.output_file
        if status == 0:
            assert [entry.name for entry in output.iterdir()] == [TRACK2.output_file]
        entries = json.loads(path.read_text()) if path.is_file() else None
        return status, entries, streams.out, streams.err

    return run


def confidences(entries):
    return np.array([entry["confidence"] for entry in entries])


def test_answers_the_real_job_like_predict_does(answer, real_job, tiny_folder):
    status, entries, out, _ = answer(real_job)
    bundle = open_bundle(tiny_folder)
    result = predict_what(bundle, real_job)
    assert status == 0 and len(entries) == 16
    assert confidences(entries).tolist() == result.confidence.tolist()
    assert [e["class"] for e in entries] == [TRACK2.classes[int(flag)] for flag in result.atypical]
    assert [(e["class"] == "atypical") for e in entries] == (confidences(entries) >= bundle.point.threshold).tolist()
    assert bundle.digest in out and "use full: 3 members, views rot4" in out
    assert result.ids == tuple(map(str, range(16)))


def test_a_patch_has_the_same_logit_by_every_way(answer, real_job, tiny_folder, tmp_path):
    """Law of one path: stack in the container, table, folder, single image, and the Python interface."""
    bundle = open_bundle(tiny_folder)
    pages = read_job(real_job).pages
    for i, page in enumerate(pages):
        (tmp_path / "folder").mkdir(exist_ok=True)
        Image.fromarray(page).save(tmp_path / "folder" / f"{i:02}.png")
    rows = "".join(f"folder/{i:02}.png,{i % 2}\n" for i in range(16))
    (tmp_path / "table.csv").write_text(f"path,label\n{rows}")
    _, entries, _, _ = answer(real_job)
    by_api = bundle.predict(np.stack(pages))
    by_folder = predict_what(bundle, tmp_path / "folder")
    by_table = predict_what(bundle, tmp_path / "table.csv")
    assert by_folder.logit.tolist() == by_table.logit.tolist() == by_api.logit.tolist()
    assert by_api.confidence.tolist() == confidences(entries).tolist()
    alone = predict_what(bundle, tmp_path / "folder" / "03.png")
    assert alone.logit[0] == pytest.approx(by_api.logit[3], abs=1e-5)
    assert by_folder.ids[3] == "03.png" and by_table.ids[3] == "folder/03.png"


@pytest.mark.parametrize("n", [1, 2, 16, 17])
def test_one_entry_per_page_whatever_their_number(answer, tmp_path, n):
    status, entries, _, err = answer(write_job(tmp_path / "job", draw_patches(n, seed=n)))
    assert status == 0 and len(entries) == n
    assert all(type(e["confidence"]) is float and 0 <= e["confidence"] <= 1 for e in entries)
    assert not [line for line in err.splitlines() if "GPU" not in line]


def test_the_same_job_twice_gives_the_same_bytes(answer, tmp_path):
    job = write_job(tmp_path / "job", draw_patches(4))
    answer(job, output=tmp_path / "a")
    answer(job, output=tmp_path / "b")
    first, second = ((tmp_path / name / TRACK2.output_file).read_bytes() for name in "ab")
    assert first == second and b"NaN" not in first


def test_permuted_pages_permute_the_entries(answer, tmp_path):
    pages = draw_patches(7, seed=5)
    order = np.random.default_rng(1).permutation(7)
    _, before, _, _ = answer(write_job(tmp_path / "a", pages))
    _, after, _, _ = answer(write_job(tmp_path / "b", pages[order]))
    np.testing.assert_allclose(confidences(after), confidences(before)[order], rtol=0, atol=1e-5)
    assert len(set(confidences(before))) == 7


def test_a_damaged_page_gets_the_training_prevalence_and_one_line(answer, tmp_path):
    pages = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    job = write_job(tmp_path / "job", pages)
    (path,) = (job / TRACK2.image_folder).iterdir()
    with Image.open(path) as image:
        image.seek(1)
        at = image.tag_v2[273][0]
    content = bytearray(path.read_bytes())
    content[at : at + 400] = b"\xff" * 400
    path.write_bytes(content)
    status, entries, _, err = answer(job)
    assert status == 0 and len(entries) == 3
    assert entries[1] == {"class": "normal", "confidence": PREVALENCE}
    lines = [line for line in err.splitlines() if "GPU" not in line and "page" in line]
    assert len(lines) == 1 and "page 1" in lines[0] and "prevalence" in lines[0]
    assert confidences(entries)[[0, 2]].tolist() != [PREVALENCE] * 2


def test_pages_of_any_size_and_flat_pages_are_answered(answer, tmp_path):
    pages = [np.zeros((128, 128, 3), np.uint8), np.full((300, 90, 3), 255, np.uint8), np.full((1, 1, 3), 9, np.uint8)]
    status, entries, _, _ = answer(write_job(tmp_path / "job", pages))
    assert status == 0 and len(entries) == 3


def test_input_may_be_a_symlink_and_read_only(answer, tmp_path):
    job = write_job(tmp_path / "elsewhere", draw_patches(2))
    for path in sorted(job.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (tmp_path / "input").symlink_to(job)
    assert answer(tmp_path / "input")[0] == 0


def test_operating_points_and_weights_come_from_the_environment(answer, tmp_path, tiny_folder, monkeypatch):
    job = write_job(tmp_path / "job", draw_patches(3))
    monkeypatch.setenv("MIDOG_MODEL_DIR", str(tiny_folder))
    monkeypatch.setenv("MIDOG_USE", "fast")
    status, entries, out, _ = answer(job, model=None)
    assert status == 0 and "use fast: 1 members, views none, 1 fold models" in out
    expected = open_bundle(tiny_folder, use="fast").predict(draw_patches(3)).confidence
    assert confidences(entries).tolist() == expected.tolist()
    monkeypatch.setenv("MIDOG_USE", "fasst")
    status, _, _, err = answer(job, model=None, output=tmp_path / "none")
    assert status == 2 and "did you mean fast?" in err.splitlines()[-1]


def spoil_bundle(folder):
    (folder / "members/vit/fold_0.safetensors").write_bytes(b"x")
    return folder


@pytest.mark.parametrize("case", ["cut", "no folder", "two", "no bundle", "bad bundle", "bad variable"])
def test_each_failure_ends_in_one_line_with_problem_and_fix(answer, tmp_path, tiny_folder, monkeypatch, case):
    job, model = write_job(tmp_path / "job", draw_patches(2)), tiny_folder
    folder = job / TRACK2.image_folder
    (path,) = folder.iterdir()
    expected = 5
    if case == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif case == "no folder":
        job = tmp_path / "nowhere"
    elif case == "two":
        write_stack(folder / "second.tif", draw_patches(1))
    elif case == "no bundle":
        model, expected = tmp_path, 4
    elif case == "bad bundle":
        model, expected = spoil_bundle(Path(shutil.copytree(tiny_folder, tmp_path / "model"))), 4
    else:
        monkeypatch.setenv("MIDOG_MODEL_DIR", str(tmp_path / "empty"))
        model, expected = None, 4
    status, entries, _, err = answer(job, model=model)
    assert status == expected and entries is None
    last = err.splitlines()[-1]
    assert "; fix: " in last and last == last.strip() and err.isascii()


def test_an_unwritable_output_is_told(answer, tmp_path):
    (tmp_path / "file").write_text("x")
    status, _, _, err = answer(write_job(tmp_path / "job", draw_patches(1)), output=tmp_path / "file" / "out")
    assert status == 5 and "cannot write" in err.splitlines()[-1]


def test_a_weird_file_name_stays_one_ascii_line(answer, tmp_path):
    job = write_job(tmp_path / "job", draw_patches(1))
    content = json.loads((job / "inputs.json").read_text())
    content[0]["socket"]["slug"] = "x\ud800\n" + "y" * 70_000
    (job / "inputs.json").write_text(json.dumps(content))
    status, _, _, err = answer(job)
    assert status == 0
    assert all(len(line) < 4000 and line.isascii() for line in err.splitlines())


def test_a_fresh_process_as_in_the_image_imports_nothing_it_does_not_need(tmp_path, tiny_bundle):
    """The file copied to /opt/app, packages beside it, another working directory, no network, heavy packages banned."""
    app = tmp_path / "opt" / "app"
    app.mkdir(parents=True)
    shutil.copy(ROOT / "submission" / "inference.py", app)
    for package in ("midog", "augment", "ensemble", "submission"):
        (app / package).symlink_to(ROOT / package)
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(
        f"""
import atexit, importlib.machinery, socket, sys
BANNED = {BANNED!r}
class Ban:  # found but not importable: torch asks whether pandas is there without importing it, and may
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BANNED:
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ImportError("banned: " + spec.name)
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Ban())
def refuse(*args, **kwargs):
    raise OSError("no network")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
atexit.register(lambda: open({str(tmp_path / "loaded")!r}, "w").write("\\n".join(sys.modules)))
"""
    )
    job = write_job(tmp_path / "job", draw_patches(3))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MIDOG", "PYTHON"))}
    environment |= {"PYTHONPATH": str(guard), "PYTHONDONTWRITEBYTECODE": "1", "MIDOG_MODEL_DIR": str(tiny_bundle)}
    command = [sys.executable, str(app / "inference.py"), "--input", str(job), "--output", str(tmp_path / "output")]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert not [line for line in done.stderr.decode().splitlines() if "GPU" not in line]
    loaded = {name.partition(".")[0] for name in (tmp_path / "loaded").read_text().splitlines()}
    assert {"torch", "timm", "safetensors", "numpy", "PIL"} <= loaded
    assert not loaded & set(BANNED)
    entries = json.loads((tmp_path / "output" / TRACK2.output_file).read_text())
    expected = open_bundle(tiny_bundle).predict(draw_patches(3)).confidence
    np.testing.assert_allclose(confidences(entries), expected, rtol=0, atol=1e-5)


def test_bad_input_is_told_before_anything_heavy_is_imported(tmp_path):
    code = (
        "import sys; from submission.inference import main; status = main(['--input', sys.argv[1]]); "
        "heavy = {'torch', 'timm', 'safetensors', 'SimpleITK'} & set(sys.modules); sys.exit(99 if heavy else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 5
    assert b"cannot list" in done.stderr.splitlines()[-1]


def test_an_unknown_flavour_is_refused_also_where_the_image_sets_it(monkeypatch, capsys):
    monkeypatch.setenv("MIDOG_API", "exce")
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2 and "MIDOG_API=exce is none of exec, invoke" in capsys.readouterr().err
