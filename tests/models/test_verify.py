from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Bomb, pickled
from safetensors.torch import load_file, save_file

from midog.errors import WeightsError
from midog.files import sha256_file
from midog.models.backbones import find_backbone
from midog.models.build import build_backbone
from midog.models.verify import verify
from midog.models.weights import find_weights, write_tensors


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return build_backbone("test_vit", seed=5).state_dict()


@pytest.fixture
def published(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    """With a classifier, which the backbone does without."""
    save_file({**state, "head.weight": torch.rand(10, 64)}, tmp_path / "published.safetensors")
    return tmp_path / "published.safetensors"


def test_a_good_file_is_described(published: Path) -> None:
    verified = verify("test_vit", published)
    assert (verified.tensors, verified.parameters, verified.recorded) == (79, 306_240, False)
    assert verified.layout == "timm" and verified.sha256 == sha256_file(published)


def test_the_layout_is_named(tmp_path: Path, state: dict[str, Any]) -> None:
    """A file of a larger network, with the tower below a prefix, is read and says so."""
    inside = {f"visual.{name}": value for name, value in state.items()}
    path = write_tensors(tmp_path / "x.safetensors", {**inside, "text.weight": torch.ones(3)})
    assert verify("test_vit", path).layout == "timm, below visual."


def test_the_model_that_a_file_belongs_to_is_named(tmp_path: Path, state: dict[str, Any]) -> None:
    path = write_tensors(tmp_path / "x.safetensors", state)
    with pytest.raises(WeightsError) as caught:
        verify("test_efficientnet", path)
    text = str(caught.value)
    assert "does not fit test_efficientnet" in text and "missing: conv_stem.weight" in text
    assert f"it is a file of test_vit: midog models verify test_vit {path}" in text


def test_half_the_keys_missing_and_not_finite(tmp_path: Path, state: dict[str, Any]) -> None:
    half = dict(list(state.items())[::2])
    with pytest.raises(WeightsError, match="39 missing"):
        verify("test_vit", write_tensors(tmp_path / "half.safetensors", half))
    broken = {**state, "pos_embed": torch.full_like(state["pos_embed"], float("inf"))}
    with pytest.raises(WeightsError, match="not finite: pos_embed"):
        verify("test_vit", write_tensors(tmp_path / "inf.safetensors", broken))


def test_a_truncated_file_says_how_much_is_missing(published: Path, tmp_path: Path) -> None:
    whole, path = published.read_bytes(), tmp_path / "cut.safetensors"
    path.write_bytes(whole[:-1000])
    with pytest.raises(WeightsError, match=f"cut short: {len(whole) - 1000:,} of {len(whole):,} bytes"):
        verify("test_vit", path)
    path.write_bytes(whole[:100])  # inside the header
    with pytest.raises(WeightsError, match="no readable safetensors file"):
        verify("test_vit", path)
    with pytest.raises(WeightsError, match="no such weight file"):
        verify("test_vit", tmp_path / "nowhere")


def test_a_pickled_file_is_told_how_to_convert_or_refused(tmp_path: Path, state: dict[str, Any]) -> None:
    path, bomb = tmp_path / "file.bin", tmp_path / "exploded"
    path.write_bytes(pickled(state))
    with pytest.raises(WeightsError, match=rf"midog models pull test_vit DIR --file {path}"):
        verify("test_vit", path)
    path.write_bytes(pickled({**state, "x": Bomb(bomb)}))
    with pytest.raises(WeightsError, match="holds code"):
        verify("test_vit", path)
    assert not bomb.exists()


def test_a_recorded_hash_is_held_against_the_file(real_weights: Path, tmp_path: Path) -> None:

    path = find_weights(find_backbone("mobilenetv2_100"), "record", real_weights)
    assert verify("mobilenetv2_100", path).recorded
    other = write_tensors(tmp_path / "other.safetensors", load_file(path))
    with pytest.raises(WeightsError, match="fits mobilenetv2_100, but is not the file that the record describes"):
        verify("mobilenetv2_100", other)
