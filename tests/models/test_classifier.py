from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from midog.errors import UsageError, WeightsError
from midog.models.backbones import find_backbone
from midog.models.classifier import (
    Classifier,
    Network,
    backbone_key,
    backbone_state,
    build_classifier,
    fold_state,
    pretrained_state,
    round_trained,
    save_fold,
)
from midog.models.heads.linear import Linear
from midog.models.inference import Inference
from midog.models.preprocess import Image
from midog.models.prompts import Prompts
from midog.models.tuning import Frozen, Full, Last, Lora, Tune
from midog.models.weights import TensorFile, write_tensors

Train = Callable[..., Classifier]
LORAS = (Lora(), Lora("rslora", rank=4), Lora("dora", rank=4))
PROMPTS = Prompts(count=4)
OTHERS = (Full(), Frozen(), Last(blocks=1))
CASES = [("test_vit", tune) for tune in (*LORAS, PROMPTS, *OTHERS)]
CASES += [("test_convnextv2", tune) for tune in (LORAS[0], LORAS[2], *OTHERS)]
CASES += [("test_efficientnet", tune) for tune in OTHERS]


def network(name: str = "test_vit", tune: Tune | None = None, **more: Any) -> Network:
    return Network(find_backbone(name), "random", Image(crop=64, size=64), tune or Full(), **more)


@torch.no_grad()
def logits(classifier: Classifier, patches: np.ndarray) -> torch.Tensor:
    return classifier.eval()(classifier.prepare(patches))


def bytes_of(module: Classifier) -> dict[str, bytes]:
    return {name: value.contiguous().numpy().tobytes() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(("name", "tune"), CASES, ids=lambda case: getattr(case, "kind", case))
def test_a_saved_fold_answers_as_the_trained_one(
    name: str, tune: Tune, patches: np.ndarray, train: Train, tmp_path: Path
) -> None:
    settings = network(name, tune)
    trained = train(settings, patches)
    expected = logits(trained, patches)
    fold = save_fold(trained, tmp_path / "model.safetensors", {"note": 1})
    base = write_tensors(tmp_path / "backbone.safetensors", backbone_state(trained))
    switched = Inference(settings, base).switch(fold)
    torch.testing.assert_close(logits(switched, patches), expected, atol=1e-5, rtol=1e-5)
    assert switched.network == settings
    assert TensorFile(fold).about["note"] == 1
    untouched = build_classifier(settings).eval()
    untouched.head.load_state_dict(trained.head.state_dict())
    moved = (logits(untouched, patches) - expected).abs().max()
    assert (moved == 0) if isinstance(tune, Frozen) else (moved > 1e-3), "the tuning itself must show in the logits"


@pytest.mark.parametrize("tune", [*LORAS, PROMPTS, Last(blocks=1), Full()], ids=lambda tune: tune.kind)
def test_a_rounded_fold_model_is_stored_in_half_the_bytes_and_answers_alike(
    tune: Tune, patches: np.ndarray, train: Train, tmp_path: Path
) -> None:
    settings = network("test_vit", tune)
    trained = train(settings, patches)
    whole = save_fold(trained, tmp_path / "whole.safetensors").stat().st_size
    round_trained(trained)
    expected = logits(trained, patches)
    fold = save_fold(trained, tmp_path / "model.safetensors")
    stored = TensorFile(fold)
    assert stored.names and all(stored[name].dtype == torch.float16 for name in stored.names)
    assert fold.stat().st_size < 0.75 * whole
    base = write_tensors(tmp_path / "backbone.safetensors", backbone_state(trained))
    torch.testing.assert_close(logits(Inference(settings, base).switch(fold), patches), expected, atol=1e-5, rtol=1e-5)


def test_switching_back_gives_equal_bytes(patches: np.ndarray, train: Train, tmp_path: Path) -> None:
    """Eight fold models of seven tunings take turns on one backbone; order must not matter."""
    tunes = (*LORAS, Full(), Last(blocks=1), PROMPTS, Frozen(), Prompts(count=2))
    files, base = [], tmp_path / "backbone.safetensors"
    for i, tune in enumerate(tunes):
        trained = train(network(tune=tune), patches, seed=i)
        files.append(save_fold(trained, tmp_path / f"{i}.safetensors"))
        write_tensors(base, backbone_state(trained))
    fresh = {file: bytes_of(Inference(network(), base).switch(file)) for file in files}
    assert len({tuple(sorted(content.items())) for content in fresh.values()}) == len(files)
    shared = Inference(network(), base)
    for turn in (*range(8), *reversed(range(8)), 2, 0, 3, 0, 4, 0, 5, 0, 5, 7, 5, 2, 7, 3, 6, 5):
        assert bytes_of(shared.switch(files[turn])) == fresh[files[turn]]


def test_the_pretrained_state_does_not_depend_on_the_tuning(patches: np.ndarray, train: Train) -> None:
    for name in ("test_vit", "test_efficientnet"):
        expected = pretrained_state(network(name))
        assert {value.dtype for key, value in expected.items() if key.endswith("weight")} == {torch.float16}
        for tune in (Full(), Frozen(), Last(blocks=2), *((*LORAS, PROMPTS) if name == "test_vit" else ())):
            found = backbone_state(train(network(name, tune), patches))
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected)
            assert all(found[key].dtype == expected[key].dtype for key in expected)


def test_random_starts_are_reproducible() -> None:
    for tune in (Full(), Lora(), Prompts()):
        torch.manual_seed(0)
        first = build_classifier(network(tune=tune, seed=7)).state_dict()
        torch.manual_seed(1)
        second, other = (build_classifier(network(tune=tune, seed=seed)).state_dict() for seed in (7, 8))
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert any(not torch.equal(first[key], other[key]) for key in first)


def test_frozen_weights_are_rounded_before_training() -> None:
    """So that packing them as float16 moves nothing. What is trained starts from the published float32."""
    last = build_classifier(network(tune=Last(blocks=1)))
    original = build_classifier(network(tune=Full())).backbone.state_dict()
    for name, parameter in last.backbone.named_parameters():
        exact = parameter.detach()
        if parameter.requires_grad:
            assert torch.equal(exact, original[name])
        else:
            assert torch.equal(exact, original[name].half().float())
    assert any(not torch.equal(value, value.half().float()) for value in original.values())


def test_adapters_start_at_the_frozen_model(patches: np.ndarray) -> None:
    frozen = build_classifier(network(tune=Frozen()))
    torch.nn.init.normal_(frozen.head.linear.weight, generator=torch.Generator().manual_seed(0))
    for tune in LORAS:
        adapted = build_classifier(network(tune=tune))
        adapted.head.load_state_dict(frozen.head.state_dict())
        torch.testing.assert_close(logits(adapted, patches), logits(frozen, patches), atol=1e-5, rtol=1e-5)


def test_a_fold_state_holds_what_differs_and_no_more(patches: np.ndarray, train: Train) -> None:
    head = {"head.linear.weight", "head.linear.bias"}
    assert fold_state(train(network("test_efficientnet", Frozen()), patches)).keys() == head
    lora = fold_state(train(network(tune=Lora(rank=2)), patches))
    assert {name.rpartition(".")[2] for name in lora.keys() - head} == {"lora_A", "lora_B"}
    assert lora["backbone.blocks.3.attn.qkv.lora_A"].shape == (2, 64)
    assert lora["backbone.blocks.3.attn.qkv.lora_B"].shape == (192, 2)
    prompts = fold_state(train(network(tune=PROMPTS), patches))
    assert {name: tuple(prompts[name].shape) for name in prompts.keys() - head} == {
        f"backbone.blocks.{i}.prompts": (4, 64) for i in range(6)
    }
    dora = fold_state(train(network(tune=Lora("dora")), patches))
    assert dora["backbone.blocks.3.mlp.fc2.magnitude"].shape == (64,)
    last = fold_state(train(network(tune=Last(blocks=1)), patches))
    assert {name.split(".")[1] for name in last.keys() - head} == {"blocks", "norm"}
    assert all(name.startswith("backbone.blocks.5.") for name in last if ".blocks." in name)
    full = fold_state(train(network("test_efficientnet"), patches))
    assert "backbone.bn1.running_mean" in full
    assert "backbone.bn1.num_batches_tracked" in full
    buffers = {name for name in full if name.rpartition(".")[2] in ("running_mean", "running_var")}
    assert buffers and all(full[name].dtype == torch.float32 for name in buffers)
    assert all(value.is_contiguous() for value in full.values())


@pytest.mark.parametrize("tune", OTHERS, ids=lambda tune: tune.kind)
def test_batch_norms_keep_their_statistics_where_frozen(tune: Tune, patches: np.ndarray) -> None:
    classifier = build_classifier(network("test_efficientnet", tune)).train()
    before = {name: value.clone() for name, value in classifier.backbone.named_buffers()}
    classifier(classifier.prepare(patches))
    moved = {
        name.split(".")[0]
        for name, value in classifier.backbone.named_buffers()
        if not torch.equal(value, before[name])
    }
    assert moved == {"full": {"bn1", "blocks", "bn2"}, "head": set(), "last": {"blocks", "bn2"}}[tune.kind]
    assert classifier.head.training


@pytest.mark.parametrize(("tune", "part"), [(Lora(), "lora_"), (PROMPTS, ".prompts")], ids=["lora", "prompts"])
def test_only_what_is_trainable_gets_gradients(tune: Tune, part: str, patches: np.ndarray) -> None:
    classifier = build_classifier(network(tune=tune))
    torch.nn.init.ones_(classifier.head.linear.weight)
    classifier(classifier.prepare(patches)).sum().backward()
    for name, parameter in classifier.named_parameters():
        assert (parameter.grad is not None) == (part in name or name.startswith("head.")), name


def test_convolutional_networks_run_channels_last(patches: np.ndarray) -> None:
    convolutional = build_classifier(network("test_efficientnet"))
    assert convolutional.backbone.conv_stem.weight.is_contiguous(memory_format=torch.channels_last)
    same = Network.from_dict(network("test_efficientnet").to_dict())
    plain = build_classifier(same)
    plain.backbone.to(memory_format=torch.contiguous_format)
    plain.format = torch.contiguous_format
    torch.nn.init.ones_(plain.head.linear.weight)
    torch.nn.init.ones_(convolutional.head.linear.weight)
    torch.testing.assert_close(logits(convolutional, patches), logits(plain, patches), atol=1e-4, rtol=1e-4)


def test_members_on_one_backbone_may_differ_in_all_else(patches: np.ndarray, train: Train, tmp_path: Path) -> None:
    """A fold file brings its own image, head and tuning."""
    large = Network(find_backbone("test_vit"), "random", Image(crop=128, size=96), Lora(rank=2), Linear(dropout=0.2))
    small = network(tune=Full())
    files, expected = [], []
    for settings in (large, small):
        trained = train(settings, patches)
        files.append(save_fold(trained, tmp_path / f"{len(files)}.safetensors"))
        expected.append(logits(trained, patches))
    inference = Inference(small, pretrained_state(large))
    for file, settings, answer in zip(files, (large, small), expected, strict=True):
        switched = inference.switch(file)
        assert switched.network == settings
        assert switched.prepare(patches).shape[-1] == settings.image.size
        torch.testing.assert_close(logits(switched, patches), answer, atol=1e-5, rtol=1e-5)


def test_overridden_tensors_may_be_absent_from_the_backbone_file(
    patches: np.ndarray, train: Train, tmp_path: Path
) -> None:
    settings = network("test_efficientnet")
    trained = train(settings, patches)
    fold = save_fold(trained, tmp_path / "fold.safetensors")
    stored = {name.removeprefix("backbone.") for name in TensorFile(fold).names}
    rest = {name: value for name, value in backbone_state(trained).items() if name not in stored}
    base = write_tensors(tmp_path / "rest.safetensors", rest)
    torch.testing.assert_close(logits(Inference(settings, base).switch(fold), patches), logits(trained, patches))
    if not rest:
        assert Inference(settings, None).switch(fold) is not None
    lora = save_fold(train(network(tune=Lora()), patches), tmp_path / "lora.safetensors")
    with pytest.raises(WeightsError, match=r"missing: backbone\.") as caught:
        Inference(network(), None).switch(lora)
    assert "do not make a whole test_vit" in caught.value.problem


def test_files_that_do_not_belong(patches: np.ndarray, train: Train, tmp_path: Path) -> None:
    good = save_fold(train(network(tune=Lora(rank=2)), patches), tmp_path / "good.safetensors")
    other = save_fold(train(network("test_convnextv2"), patches), tmp_path / "other.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    about, state = TensorFile(good).about, load_file(good)
    about["network"]["tune"]["rank"] = 3
    wrong_rank = write_tensors(tmp_path / "rank.safetensors", state, about)
    about["network"]["tune"] = {"kind": "full"}
    no_adapter = write_tensors(tmp_path / "full.safetensors", state, about)
    about["network"]["tune"] = {"kind": "prefix"}
    unknown = write_tensors(tmp_path / "unknown.safetensors", state, about)
    extra = write_tensors(
        tmp_path / "extra.safetensors", {**state, "backbone.x": torch.ones(1)}, TensorFile(good).about
    )
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(good.read_bytes()[:-8])
    inference = Inference(network(), pretrained_state(network()))
    with pytest.raises(RuntimeError, match="switch to a fold model first"):
        _ = inference.module
    before = bytes_of(inference.switch(good))
    messages = {
        other: "a fold model on test_convnextv2, not on test_vit",
        foreign: "no fold model of this project",
        wrong_rank: "of another shape",
        no_adapter: "unexpected: backbone.blocks",
        unknown: "no fold model of this project",
        extra: "unexpected: backbone.x",
        truncated: "no readable safetensors",
        tmp_path / "nothing.safetensors": "no such weight file",
    }
    for file, message in messages.items():
        with pytest.raises(WeightsError, match=message):
            inference.switch(file)
        assert bytes_of(inference.module) == before, "a file that does not fit changes nothing"


def test_real_weights_fully_tuned(patches: np.ndarray, train: Train, real_weights: Path, tmp_path: Path) -> None:
    settings = Network(find_backbone("mobilenetv2_100"), image=Image(crop=64, size=64), tune=Full())
    trained = train(settings, patches, real_weights)
    fold = save_fold(trained, tmp_path / "fold.safetensors")
    switched = Inference(settings, pretrained_state(settings, real_weights)).switch(fold)
    torch.testing.assert_close(logits(switched, patches), logits(trained, patches), atol=1e-5, rtol=1e-5)


WITHOUT_PEFT = """
import sys
banned = ("peft", "albumentations", "cv2", "sklearn", "optuna", "scipy", "pandas", "pydantic", "matplotlib", "rich")
sys.modules.update(dict.fromkeys(banned))
import numpy as np, torch
from midog.models.classifier import Network
from midog.models.inference import Inference
from midog.models.weights import TensorFile
network = Network.from_dict(TensorFile(sys.argv[1]).about["network"])
from pathlib import Path
module = Inference(network, Path(sys.argv[2])).switch(sys.argv[1])
with torch.no_grad():
    torch.save(module(module.prepare(np.load(sys.argv[3]))), sys.argv[4])
"""


def test_inference_needs_no_peft(patches: np.ndarray, train: Train, tmp_path: Path) -> None:
    trained = train(network(tune=Lora("dora")), patches)
    fold = save_fold(trained, tmp_path / "fold.safetensors")
    base = write_tensors(tmp_path / "base.safetensors", backbone_state(trained))
    np.save(tmp_path / "patches.npy", patches)
    paths = [str(path) for path in (fold, base, tmp_path / "patches.npy", tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-c", WITHOUT_PEFT, *paths], check=True)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    torch.testing.assert_close(found, logits(trained, patches), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tune", [*LORAS, PROMPTS, *OTHERS, Lora(targets=("attn.qkv",))], ids=lambda tune: tune.kind)
def test_networks_are_plain_json(tune: Tune) -> None:
    import json

    settings = Network(
        find_backbone("virchow2"), "weights/x.safetensors", Image(96, 224), tune, Linear(dropout=0.1), seed=3
    )
    assert Network.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    ("place", "key", "message"),
    [
        ((), "bakbone", "did you mean backbone"),
        (("tune",), "ranks", "did you mean rank"),
        (("image",), "sizes", "did you mean size"),
        (("backbone",), "tim", "did you mean timm"),
    ],
)
def test_unknown_keys_give_the_nearest(place: tuple[str, ...], key: str, message: str) -> None:
    content = network(tune=Lora()).to_dict()
    inner = content
    for name in place:
        inner = inner[name]
    inner[key] = 1
    with pytest.raises(UsageError, match=message):
        Network.from_dict(content)


def test_unknown_kinds_give_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown tune.kind: rslor[\s\S]*did you mean rslora"):
        Network.from_dict({**network().to_dict(), "tune": {"kind": "rslor"}})


def test_sizes_that_patches_do_not_tile_are_refused() -> None:
    with pytest.raises(UsageError, match="no multiple of the 16-pixel patches"):
        build_classifier(Network(find_backbone("test_vit"), "random", Image(size=100)))


def test_backbone_keys_tell_pretrained_states_apart() -> None:
    vit = find_backbone("test_vit")
    networks = [
        Network(vit),
        Network(vit, "random", seed=0),
        Network(vit, "random", seed=1),
        Network(vit, "a/model.safetensors"),
        Network(vit, "b/model.safetensors"),
        Network(find_backbone({**vit.to_dict(), "timm_kwargs": {"init_values": 1e-5}})),
    ]
    keys = [backbone_key(item) for item in networks]
    assert len(set(keys)) == len(keys)
    assert keys[0] == "test_vit"
    assert backbone_key(Network(vit, tune=Lora(), image=Image(64), seed=9)) == "test_vit"
    assert "/" not in backbone_key(Network(find_backbone("timm/test_vit2")))
