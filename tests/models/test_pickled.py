from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import pytest
import torch
from checkpoints import Bomb, pickled
from safetensors.torch import load_file

from midog.errors import WeightsError
from midog.models.build import build_backbone
from midog.models.pickled import read_pickled
from midog.models.pull import pull
from midog.models.weights import write_tensors


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapped", ["", "state_dict", "model", "teacher"])
def test_checkpoints_are_unwrapped(tmp_path: Path, wrapped: str, legacy: bool) -> None:
    inner = {"a.weight": torch.rand(3, 4), "step": 7, "name": "x"}
    content = {wrapped: inner, "counter": torch.ones(1), "epoch": 3} if wrapped else inner
    (tmp_path / "file.pth").write_bytes(pickled(content, legacy))
    found = read_pickled(tmp_path / "file.pth")
    assert set(found) == {"a.weight"} and torch.equal(found["a.weight"], inner["a.weight"])  # type: ignore[arg-type]


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_that_share_memory_are_stored_apart(tmp_path: Path, legacy: bool) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    content = {"whole": whole, "tied": whole, "row": whole[1], "turned": whole.T, "half": whole.half()}
    (tmp_path / "file.bin").write_bytes(pickled(content, legacy))
    write_tensors(tmp_path / "out.safetensors", read_pickled(tmp_path / "file.bin"))
    stored = load_file(tmp_path / "out.safetensors")
    assert all(
        torch.equal(stored[name], value) and stored[name].dtype == value.dtype for name, value in content.items()
    )


def test_settings_and_modules_inside_count_as_code(tmp_path: Path) -> None:
    for content in (argparse.Namespace(a=1), torch.nn.Linear(2, 2)):
        (tmp_path / "file.bin").write_bytes(pickled({"x": torch.ones(1), "args": content}))
        with pytest.raises(WeightsError, match=rf"holds code \(.*{type(content).__name__}\)"):
            read_pickled(tmp_path / "file.bin")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_bomb_is_never_run(tmp_path: Path, legacy: bool) -> None:
    bomb = tmp_path / "exploded"
    (tmp_path / "file.bin").write_bytes(pickled({"x": Bomb(bomb)}, legacy))
    with pytest.raises(WeightsError, match="holds code"):
        read_pickled(tmp_path / "file.bin")
    (tmp_path / "file.bin").write_bytes(pickle.dumps(Bomb(bomb), protocol=2))
    with pytest.raises(WeightsError, match="holds code"):
        pull("test_vit", tmp_path / "weights", tmp_path / "file.bin")
    assert not bomb.exists() and not list((tmp_path / "weights").glob("*vit*t*s"))


@pytest.mark.parametrize("damage", ["cut", "empty", "html", "list", "numbers"])
def test_files_that_are_no_checkpoint(tmp_path: Path, damage: str) -> None:
    state = build_backbone("test_vit").state_dict()
    content = {
        "cut": pickled(state)[:-5000],
        "empty": b"",
        "html": b"<html>" * 20,
        "list": pickled([torch.ones(1)]),
        "numbers": pickled({"epoch": 3, "config": {"lr": 0.1}}),
    }
    (tmp_path / "file.bin").write_bytes(content[damage])
    expected = {"list": "seen: list", "numbers": "seen: epoch, config"}.get(damage, "is not a readable checkpoint")
    with pytest.raises(WeightsError, match=expected):
        read_pickled(tmp_path / "file.bin")
