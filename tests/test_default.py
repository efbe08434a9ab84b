"""The word `default`: the bundle that ships, wherever a bundle is named, and never by leaving a word out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from bundle_fixture import draw_patches
from PIL import Image as Picture

import midog
from midog import archive
from midog.bundle import open_bundle, read_manifest
from midog.cli import run
from midog.data.patches import PatchTable
from midog.errors import WeightsError
from submission import container, inference
from submission.stack import write_job


@pytest.fixture
def default(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny bundle in the place of the one that ships."""
    monkeypatch.setattr(archive, "DEFAULT_FOLDER", tiny_folder)
    return tiny_folder


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "images"
    folder.mkdir()
    for at, pixels in enumerate(draw_patches(3, seed=5)):
        Picture.fromarray(pixels).save(folder / f"{at}.png")
    return folder


def test_python_opens_it_by_leaving_the_path_out(default):
    bundle = midog.load_bundle()
    assert bundle.folder == default and bundle.digest == open_bundle(default).digest
    assert midog.load_bundle("default", use="fast").point.name == midog.load_bundle(use="fast").point.name == "fast"
    assert read_manifest("default") == read_manifest(default)


def test_the_command_line_predicts_with_it(default, images, capsys):
    assert run(["predict", "default", "images", "-o", "out.csv", "--use", "fast"]) == 0
    about = json.loads(Path("out.csv.json").read_text())
    assert about["bundle_sha256"] == open_bundle(default).digest and about["use"] == "fast"
    assert run(["predict", "images", "default", "-o", "out.csv"]) == 2
    assert "midog predict default images" in capsys.readouterr().err


def test_a_bundle_must_be_named_on_the_command_line(default, images, capsys):
    assert run(["container", "build", "--dry-run"]) == 2
    assert "Missing argument 'bundle'" in capsys.readouterr().err


def test_a_folder_of_that_name_is_written_as_a_path(default, copied_default, images):
    other = open_bundle("./default")
    assert other.folder.resolve() == copied_default.resolve() and other.digest == open_bundle(Path("default")).digest
    assert open_bundle("default").folder == default


@pytest.fixture
def copied_default(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "default"))


def test_evaluate_and_the_container_take_the_word(default, tiny_table: PatchTable, images, capsys):
    table = tiny_table.root / "patches.csv"
    assert run(["predict", "default", str(table), "-o", "out.csv"]) == 0
    Path("out.csv.json").unlink()
    capsys.readouterr()
    assert run(["evaluate", "out.csv", str(table), "--bundle", "default"]) == 0
    assert "seen in training" in capsys.readouterr().out
    assert run(["container", "build", "default", "--dry-run"]) == 0
    assert run(["container", "test", "default", "--dry-run"]) == 0
    assert run(["container", "save", "default", "--dry-run"]) == 0


def test_the_entry_point_takes_the_word_too(default, images, tmp_path, monkeypatch, capsys):
    job = write_job(tmp_path / "job", list(draw_patches(2)))
    monkeypatch.delenv("MIDOG_USE", raising=False)
    status = inference.main(["--input", str(job), "--output", str(tmp_path / "out"), "--model", "default"])
    assert status == 0 and open_bundle(default).digest in capsys.readouterr().out


def test_where_none_is_installed_the_error_names_the_command(tmp_path, images, monkeypatch, capsys):
    monkeypatch.setattr(archive, "DEFAULT_FOLDER", tmp_path / "none")
    with pytest.raises(WeightsError, match="holds no default bundle") as caught:
        midog.load_bundle()
    assert "midog train default patches.csv -o runs/default && midog blend runs/default" in caught.value.fix
    assert run(["predict", "default", "images", "-o", "out.csv"]) == 4
    assert "midog bundle blends/default -o model.tar.gz" in capsys.readouterr().err


def test_an_image_holds_the_bundle_it_is_built_for_and_no_other(tiny_folder, tiny_bundle, monkeypatch, tmp_path):
    checkout = tmp_path / "checkout"
    for name in container.PACKAGES:
        (checkout / name).mkdir(parents=True)
        (checkout / name / "__init__.py").write_text("")
    for name in container.FILES:
        (checkout / name).write_text("")
    shipped = Path(shutil.copytree(tiny_folder, checkout / container.DEFAULT_BUNDLES / "default"))
    monkeypatch.setattr(container, "ROOT", checkout)
    monkeypatch.setattr(archive, "DEFAULT_FOLDER", shipped)
    for name in (str(tiny_bundle), "default"):
        with container.stage(open_bundle(name)) as context:
            assert [path.name for path in (context / "midog").iterdir()] == ["__init__.py"]
            assert open_bundle(context / "model").digest == open_bundle(shipped).digest


def test_a_plain_docker_build_leaves_it_out():
    lines = (container.ROOT / ".dockerignore").read_text().splitlines()
    assert lines.index("!midog") < lines.index(container.DEFAULT_BUNDLES)  # the later pattern counts
    assert archive.DEFAULT_FOLDER.parent == container.ROOT / container.DEFAULT_BUNDLES
