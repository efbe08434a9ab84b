"""`midog models` as it is typed; what comes from a hub is tested in tests/models/test_pull.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from midog.errors import WeightsError
from midog.models.backbones import list_backbones
from midog.models.build import build_backbone
from midog.models_cli import models_app


def run(*arguments: str) -> tuple[str, str]:
    """What is printed on stdout and stderr. Raises what the command raises."""
    result = CliRunner().invoke(models_app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.safetensors"
    save_file(build_backbone("test_vit", seed=3).state_dict(), path)
    return path


def test_a_local_file_is_pulled_and_verified(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "weights" / "test_vit.safetensors"
    out, err = run("pull", "test_vit", str(target.parent), "--file", str(file))
    assert f"test_vit from {file}" in out
    assert err.startswith("test_vit: Apache-2.0 (") and err.endswith(
        f"wrote {target}\nnext: midog models verify test_vit {target}\n"
    )
    out, _ = run("pull", "test_vit", str(target.parent))
    assert out == f"{target} is there already and fits test_vit: nothing to do\n"
    out, _ = run("verify", "test_vit", str(target))
    assert "fits test_vit: 306,240 parameters, all there and finite" in out
    assert "layout   timm, 78 tensors" in out and "none is recorded" in out
    content = json.loads(run("verify", "test_vit", str(target), "--json")[0])
    assert content["parameters"] == 306_240 and content["path"] == str(target) and not content["recorded"]


def test_the_folder_of_weights_is_the_default(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIDOG_WEIGHTS", str(tmp_path / "kept"))
    run("pull", "test_vit", "--file", str(file))
    assert (tmp_path / "kept" / "test_vit.safetensors").is_file()


def test_a_model_of_timm_is_pulled_under_its_plain_name(tmp_path: Path) -> None:
    state = build_backbone("timm/test_vit2", seed=3).state_dict()
    torch.save(state, tmp_path / "mine.bin")
    out, err = run("pull", "timm/test_vit2", str(tmp_path), "--file", str(tmp_path / "mine.bin"))
    assert "tensors only" in out and f"midog models verify timm/test_vit2 {tmp_path}/test_vit2.safetensors" in err
    assert build_backbone("timm/test_vit2", "record", weights=tmp_path) is not None


def test_gated_weights_say_where_to_ask(tmp_path: Path) -> None:
    """Before anything else happens, so also when the rest fails."""
    torch.save({}, tmp_path / "empty.bin")
    arguments = ["pull", "uni", str(tmp_path), "--file", str(tmp_path / "empty.bin")]
    result = CliRunner().invoke(models_app, arguments)
    assert isinstance(result.exception, WeightsError) and "holds no tensors" in str(result.exception)
    assert result.stderr.startswith("uni: CC-BY-NC-ND-4.0 (gated: access is asked for at http")
    assert "/MahmoodLab/UNI)" in result.stderr


def test_the_table_groups_and_hides_the_micro_models() -> None:
    out, _ = run("list")
    pathology, natural = out.split("\n\n")[:2]
    assert pathology.startswith("pathology\nname") and natural.startswith("natural images\nname")
    assert "\nuni " in pathology and "\nvirchow2 " in pathology and "\nconvnextv2_base " in natural
    assert "test_vit" not in out and "midog models pull NAME DIR" in out


def test_the_table_as_json_holds_every_model() -> None:
    groups = json.loads(run("list", "--all", "--json")[0])
    assert [row["name"] for rows in groups.values() for row in rows] == list(list_backbones())
    vit = next(row for row in groups["natural images"] if row["name"] == "test_vit")
    assert vit["parameters_m"] == pytest.approx(0.306240) and vit["features"] == 64 and vit["gflop"] > 0
