from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from safetensors.torch import load_file, save_file

from midog.errors import UsageError, WeightsError
from midog.files import sha256_file
from midog.models.backbones import find_backbone
from midog.models.build import build_backbone
from midog.models.preprocess import fit_patch
from midog.models.weights import TensorFile, find_weights, load_pretrained, write_tensors

VIT = find_backbone("test_vit")


@pytest.fixture
def vit_file(tmp_path: Path) -> Path:
    """A published-looking checkpoint: timm's names, with a classifier that the backbone does without."""
    state = build_backbone(VIT, seed=5).state_dict()
    path = tmp_path / "test_vit.safetensors"
    save_file({**state, "head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}, path)
    return path


@pytest.mark.parametrize("name", ["mobilenetv2_100", "mobilenetv1_100"])
def test_real_weights_are_the_recorded_ones_and_load(name: str, real_weights: Path) -> None:
    record = find_backbone(name)
    path = find_weights(record, "record", real_weights)
    assert path.name == record.file
    assert sha256_file(path) == record.sha256
    model, stored = build_backbone(name, "record", weights=real_weights), load_file(path)
    assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())


def test_real_weights_recognise_photographs(real_weights: Path, photographs: list[Path]) -> None:
    """Independent of us: mean, deviation, padding and channel order must be right for ImageNet's classes to come out.

    The centre 128 px of 256-px photographs shrunk by two stand in for a patch; the chance level is 0.001.
    """
    from midog.models.heads.linear import pool_features
    from midog.models.preprocess import Image, prepare

    record = find_backbone("mobilenetv2_100")
    model = build_backbone(record, "record", weights=real_weights).eval()
    stored = load_file(find_weights(record, "record", real_weights))
    chosen = list(range(0, 1000, 25))
    half = [np.asarray(PillowImage.open(photographs[i]).convert("RGB").resize((128, 128))) for i in chosen]
    with torch.no_grad():
        x = prepare(np.stack([fit_patch(image) for image in half]), Image(), record)
        logits = pool_features(model, x, "avg") @ stored["classifier.weight"].T + stored["classifier.bias"]
    assert (logits.argmax(1) == torch.tensor(chosen)).float().mean() > 0.5


def test_places_are_searched_in_order(tmp_path: Path, vit_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, other, data = tmp_path / "given", tmp_path / "environment", tmp_path / "data"
    for place in (folder / "test_vit", other, data / "weights"):
        place.mkdir(parents=True)
    with pytest.raises(WeightsError, match="no folder was given"):
        find_weights(VIT)
    fallback = vit_file.rename(data / "weights" / vit_file.name)
    monkeypatch.setenv("MIDOG_DATA", str(data))
    assert find_weights(VIT) == fallback
    monkeypatch.setenv("MIDOG_WEIGHTS", str(other))
    with pytest.raises(WeightsError, match="looked in"):
        find_weights(VIT)
    (other / "test_vit.safetensors").write_bytes(fallback.read_bytes())
    assert find_weights(VIT) == other / "test_vit.safetensors"
    assert find_weights(VIT, "record", folder) == other / "test_vit.safetensors"
    (folder / "test_vit" / "model.safetensors").write_bytes(fallback.read_bytes())
    assert find_weights(VIT, "record", folder) == folder / "test_vit" / "model.safetensors"
    assert find_weights(VIT, str(fallback), folder) == fallback
    assert find_weights(VIT, "record", fallback) == fallback


def test_a_hub_file_name_identifies_no_model(tmp_path: Path) -> None:
    """`model.safetensors` lying loose may be any model's."""
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="not on this machine"):
        find_weights(find_backbone("convnextv2_base"), "record", tmp_path)


def test_missing_weights_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        find_weights(find_backbone("virchow2"), "record", tmp_path)
    message = str(caught.value)
    for part in ("paige-ai/Virchow2", "gated", "midog models pull virchow2 DIR", "pretrained: random", str(tmp_path)):
        assert part in message
    assert caught.value.exit_code == 4
    with pytest.raises(WeightsError, match="no such file or folder"):
        find_weights(VIT, str(tmp_path / "nowhere"))


def test_another_file_under_the_recorded_name_is_refused(tmp_path: Path) -> None:
    record = find_backbone("mobilenetv2_100")
    path = tmp_path / record.file
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="not the file that the record"):
        find_weights(record, "record", tmp_path)
    assert find_weights(record, str(path)) == path


def test_a_published_classifier_is_dropped(vit_file: Path) -> None:
    model = build_backbone(VIT, str(vit_file))
    expected = build_backbone(VIT, seed=5).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_convolutions_of_one_pixel_fill_linear_layers(tmp_path: Path) -> None:
    """timm publishes the small ConvNeXt V2 with 1x1 convolutions; with linear layers the answers are the same."""
    convolutional = build_backbone({"timm": "convnextv2_atto", "timm_kwargs": {"conv_mlp": True}}, seed=1).eval()
    write_tensors(tmp_path / "convnextv2_atto.safetensors", convolutional.state_dict())
    linear = build_backbone("convnextv2_atto", "record", weights=tmp_path).eval()
    assert isinstance(linear.stages[0].blocks[0].mlp.fc1, torch.nn.Linear)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(linear(x), convolutional(x), atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_listed(vit_file: Path, tmp_path: Path) -> None:
    state = load_file(vit_file)
    state["blocks.0.attn.qkv.weight"] = torch.zeros(3, 64)
    state["stranger.weight"] = state.pop("blocks.1.norm1.bias")
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(WeightsError) as caught:
        build_backbone(VIT, str(tmp_path / "bad.safetensors"))
    text = str(caught.value)
    assert "1 missing: blocks.1.norm1.bias" in text
    assert "1 unexpected: stranger.weight" in text
    assert "blocks.0.attn.qkv.weight (3, 64) instead of (192, 64)" in text


def test_numbers_that_are_not_finite_are_refused(vit_file: Path, tmp_path: Path) -> None:
    state = load_file(vit_file)
    state["cls_token"][..., 3] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(WeightsError, match="not finite: cls_token"):
        load_pretrained(build_backbone(VIT), tmp_path / "nan.safetensors", VIT)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "missing", "folder"])
def test_damaged_files(vit_file: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "damaged.safetensors"
    content = {"truncated": vit_file.read_bytes()[:-100], "empty": b"", "text": b"label,path\n" * 50}
    if damage in content:
        path.write_bytes(content[damage])
    if damage == "folder":
        path.mkdir()
    with pytest.raises(WeightsError):
        TensorFile(path)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))  # type: ignore[return-value]


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_pickles_are_never_opened(tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "test_vit.safetensors"
    torch.save({"x": Bomb()}, path) if writer == "torch" else path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match="pickled checkpoint"):
        build_backbone(VIT, str(path))
    assert not Path("exploded").exists()


def test_a_pickled_file_in_the_folder_is_explained(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "uni.bin")
    with pytest.raises(WeightsError, match="midog models pull converts"):
        build_backbone("uni", "record", weights=tmp_path)


def test_written_files_read_back_and_repeat(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.ones(2, dtype=torch.int64)}
    about = {"z": 1, "a": [1, 2], "m": {"y": 0.5}}
    first = write_tensors(tmp_path / "1.safetensors", tensors, about)
    second = write_tensors(tmp_path / "2.safetensors", dict(reversed(tensors.items())), dict(reversed(about.items())))
    assert first.read_bytes() == second.read_bytes()
    file = TensorFile(first)
    assert file.about == {"schema_version": 1, **about}
    assert file.names == {"a", "b"}
    assert file.shape("b") == (3, 2)
    assert torch.equal(file["b"], tensors["b"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.safetensors", "2.safetensors"]


def test_a_newer_schema_names_the_release(tmp_path: Path) -> None:
    write_tensors(tmp_path / "new.safetensors", {}, {"schema_version": 99})
    with pytest.raises(UsageError, match="schema version 99"):
        TensorFile(tmp_path / "new.safetensors")
