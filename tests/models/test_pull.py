from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Bomb, pickled
from hub_server import COMMIT, Hub, serve
from safetensors.torch import load_file, save_file

from midog.errors import UsageError, WeightsError
from midog.files import sha256_file
from midog.models.backbones import find_backbone
from midog.models.build import build_backbone
from midog.models.pull import pull
from midog.models.verify import verify
from midog.models.weights import TensorFile, write_tensors

REPOSITORY = "timm/test_vit.r160_in1k"
PUBLISHED = f"{REPOSITORY}/model.safetensors"
MIDOG = """
import sys
from midog.errors import MidogError
from midog.models_cli import models_app
try:
    models_app(sys.argv[1:], standalone_mode=False)
except MidogError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture(scope="session")
def state() -> dict[str, torch.Tensor]:
    return build_backbone("test_vit", seed=5).state_dict()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as running:
        yield running


@pytest.fixture
def vit(tmp_path: Path, state: dict[str, torch.Tensor]) -> bytes:
    """A file as it is published: with a classifier, here a large one, so that it comes in more than one piece."""
    path = tmp_path / "published.safetensors"
    save_file({**state, "head.weight": torch.rand(60_000, 64)}, path)
    return path.read_bytes()


def start(hub: Hub, tmp_path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`midog models …` in a process of its own: huggingface_hub reads its environment once, at import."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    given = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1,localhost", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", MIDOG, *arguments],
        env={**kept, **given},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def midog(hub: Hub, tmp_path: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code, and everything printed."""
    process = start(hub, tmp_path, *arguments, **environment)
    out, err = process.communicate(timeout=240)
    return process.returncode, out + err


def held(folder: Path) -> list[str]:
    """What lies in a folder, but for the lock."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.is_dir() else []


# ── from the hub ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_published_file_is_stored_as_it_is_and_only_once(hub: Hub, tmp_path: Path, vit: bytes) -> None:
    hub.files[PUBLISHED] = vit
    folder = tmp_path / "weights"
    code, text = midog(hub, tmp_path, "pull", "test_vit", str(folder), HF_TOKEN=hub.token)
    target = folder / "test_vit.safetensors"
    assert code == 0 and f"wrote {target}\nnext: midog models verify test_vit {target}" in text
    assert f"test_vit: Apache-2.0 ({hub.url}/{REPOSITORY})" in text
    assert COMMIT in text and hashlib.sha256(vit).hexdigest() in text
    assert target.read_bytes() == vit and held(folder) == ["test_vit.safetensors"]
    assert hub.leaked == []  # the token is the hub's alone
    assert hub.paths[0] == f"/{REPOSITORY}/resolve/main/model.safetensors"
    assert not any("api" in path for path in hub.paths) and not any("torch" in agent for agent in hub.agents)
    asked = len(hub.paths)
    code, text = midog(hub, tmp_path, "pull", "test_vit", str(folder))
    assert code == 0 and "nothing to do" in text and len(hub.paths) == asked
    assert verify("test_vit", target).parameters == 306_240


def test_a_killed_transfer_continues_in_the_next_call(hub: Hub, tmp_path: Path, vit: bytes) -> None:
    hub.files[PUBLISHED], hub.stall_at = vit, 12_000_000
    folder = tmp_path / "weights"
    process = start(hub, tmp_path, "pull", "test_vit", str(folder))
    ends = time.monotonic() + 120
    while sum(path.stat().st_size for path in folder.glob(".*.part")) < 10_000_000:
        assert time.monotonic() < ends and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    hub.released.set()
    (part,) = held(folder)
    came = (folder / part).stat().st_size
    assert part.startswith(".test_vit.") and 10_000_000 <= came < len(vit)
    hub.stall_at, hub.gets = 0, []
    code, _ = midog(hub, tmp_path, "pull", "test_vit", str(folder))
    assert code == 0 and hub.gets == [f"bytes={came}-"]
    assert (folder / "test_vit.safetensors").read_bytes() == vit and held(folder) == ["test_vit.safetensors"]


def test_a_broken_transfer_is_taken_up_and_then_explained(hub: Hub, tmp_path: Path, vit: bytes) -> None:
    hub.files[PUBLISHED], hub.cuts, hub.body_status = vit, [11_000_000], []
    folder = tmp_path / "weights"
    code, _ = midog(hub, tmp_path, "pull", "test_vit", str(folder))
    assert code == 0 and hub.gets == ["", "bytes=10485760-"]
    (folder / "test_vit.safetensors").unlink()
    hub.body_status = [503]
    code, text = midog(hub, tmp_path, "pull", "test_vit", str(folder))
    assert code == 4 and "was refused: 503" in text and "the same command continues" in text


def test_another_version_is_not_glued_to_the_old_half(hub: Hub, tmp_path: Path, vit: bytes) -> None:
    hub.files[PUBLISHED] = vit
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / f".test_vit.{'a' * 16}.part").write_bytes(b"half of another file")
    (folder / f".test_vit.other.{'a' * 16}.part").write_bytes(b"half of another model")
    code, _ = midog(hub, tmp_path, "pull", "test_vit", str(folder))
    assert code == 0 and (folder / "test_vit.safetensors").read_bytes() == vit
    assert held(folder) == [f".test_vit.other.{'a' * 16}.part", "test_vit.safetensors"]


def test_a_pickled_file_becomes_safetensors_with_its_origin(hub: Hub, tmp_path: Path, state: dict[str, Any]) -> None:
    content = pickled({"teacher": {**state, "epoch": 3}, "optimizer": [1, 2]})
    hub.files[PUBLISHED] = content  # what a file is, its content says
    folder = tmp_path / "weights"
    code, text = midog(hub, tmp_path, "pull", "test_vit", str(folder))
    target = folder / "test_vit.safetensors"
    assert code == 0 and "converted from a pickled checkpoint" in text and held(folder) == ["test_vit.safetensors"]
    stored = load_file(target)
    assert set(stored) == set(state) and all(torch.equal(stored[name], state[name]) for name in state)
    about, sha256 = TensorFile(target).about, hashlib.sha256(content).hexdigest()
    assert (about["source"], about["commit"], about["sha256"]) == (REPOSITORY, COMMIT, sha256)
    assert about["licence"] == "Apache-2.0"
    assert verify("test_vit", target).sha256 == sha256  # the published file's
    again = pull("test_vit", folder)
    assert again.found and again.converted and again.commit == COMMIT and again.bytes == len(content)


def test_code_in_a_published_file_is_refused(hub: Hub, tmp_path: Path) -> None:
    bomb = tmp_path / "exploded"
    hub.files[PUBLISHED] = pickled({"x": Bomb(bomb)})
    folder = tmp_path / "weights"
    code, text = midog(hub, tmp_path, "pull", "test_vit", str(folder))
    assert code == 4 and "holds code (posix.system)" in text and "nothing of it was run" in text
    assert not bomb.exists() and held(folder) == []


def test_what_came_is_not_what_was_announced(hub: Hub, tmp_path: Path, vit: bytes) -> None:
    hub.files[PUBLISHED], hub.sha256 = vit, "0" * 64
    folder = tmp_path / "weights"
    code, text = midog(hub, tmp_path, "pull", "test_vit", str(folder))
    assert code == 4 and "is not the file that was announced; it was deleted" in text and "expected 0000" in text
    assert held(folder) == []


def test_another_file_than_the_recorded_one_is_not_even_fetched(hub: Hub, tmp_path: Path, vit: bytes) -> None:
    record = find_backbone("mobilenetv2_100")
    assert record.sha256
    hub.files[f"{record.source}/{record.file}"] = vit
    code, text = midog(hub, tmp_path, "pull", "mobilenetv2_100", str(tmp_path / "weights"))
    assert code == 4 and "has another" in text and f"expected {record.sha256}" in text
    assert hub.gets == []


def test_a_disk_too_small_is_known_before_the_first_byte(hub: Hub, tmp_path: Path, vit: bytes) -> None:
    hub.files[PUBLISHED], hub.size = vit, 10**15
    code, text = midog(hub, tmp_path, "pull", "test_vit", str(tmp_path / "weights"))
    assert code == 1 and "test_vit needs 1000000.0 GB" in text and "free some space" in text
    assert hub.gets == [] and held(tmp_path / "weights") == []


GATED = {REPOSITORY}


@pytest.mark.parametrize(
    "behaviour, environment, said, fix",
    [
        ({"gated": GATED}, {}, "is gated, and no token was found", f"/{REPOSITORY}, then `hf auth login` (or export"),
        ({"gated": GATED}, {"HF_TOKEN": "stranger"}, "your token has no access to it", "ask for access at http"),
        ({}, {"HF_TOKEN": "hf_expired"}, "was refused: 401 Invalid credentials", "the token is wrong or expired"),
        ({"files": {}}, {}, f"{REPOSITORY} is not on the hub, or hidden", "--file FILE"),
        ({"files": {f"{REPOSITORY}/x": b""}}, {}, "has no file model.safetensors at revision main", "/tree/main"),
        ({"revisions": set()}, {}, "has no revision main", "/commits/main"),
        ({"status": 503}, {}, "was refused: 503", "try again later"),
        ({"status": 200}, {}, "is not answered by a hub", "check HF_ENDPOINT"),
        (
            {},
            {"HF_HUB_OFFLINE": "1"},
            "HF_HUB_OFFLINE is set",
            "unset HF_HUB_OFFLINE, or copy the file to DIR/test_vit",
        ),
        ({}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached", "copy the file to DIR/test_vit.safe"),
    ],
)
def test_each_refusal_has_its_own_fix(
    hub: Hub, tmp_path: Path, behaviour: dict[str, Any], environment: dict[str, str], said: str, fix: str
) -> None:
    hub.files = {PUBLISHED: b"x"}
    for key, value in behaviour.items():
        setattr(hub, key, value)
    code, text = midog(hub, tmp_path, "pull", "test_vit", str(tmp_path / "weights"), **environment)
    assert code == 4, text
    assert said in text and fix in text.partition("fix: ")[2]
    assert hub.gets == [] and held(tmp_path / "weights") == []


def test_a_token_opens_a_gated_model(hub: Hub, tmp_path: Path, vit: bytes) -> None:
    hub.files[PUBLISHED], hub.gated = vit, GATED
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(hub.token, encoding="utf-8")  # as `hf auth login` stores it
    code, _ = midog(hub, tmp_path, "pull", "test_vit", str(tmp_path / "weights"))
    assert code == 0 and (tmp_path / "weights" / "test_vit.safetensors").read_bytes() == vit and hub.leaked == []


# ── from this machine ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_that_no_hub_has(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"not published on the hub[\s\S]*--file FILE"):
        pull("test_convnextv2", tmp_path)
    with pytest.raises(UsageError, match="did you mean test_vit"):
        pull("test_vitt", tmp_path)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_a_local_file_is_taken_and_left_where_it_is(tmp_path: Path, state: dict[str, Any], ending: str) -> None:
    file = tmp_path / f"mine.{ending}"
    save_file(state, file) if ending == "safetensors" else file.write_bytes(pickled(state))
    before = file.read_bytes()
    pulled = pull("test_vit", tmp_path / "weights", file)
    assert pulled.path == tmp_path / "weights" / "test_vit.safetensors" and not pulled.found
    assert pulled.converted == (ending == "pth") and pulled.sha256 == sha256_file(file) and pulled.commit == ""
    assert file.read_bytes() == before
    model = build_backbone("test_vit", "record", weights=tmp_path / "weights")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(UsageError, match="no such file"):
        pull("test_vit", tmp_path / "other", tmp_path / "nowhere.bin")


def test_a_pickled_file_in_the_folder_is_used_before_the_hub(tmp_path: Path, state: dict[str, Any]) -> None:
    (tmp_path / "test_vit").mkdir()
    (tmp_path / "test_vit" / "pytorch_model.bin").write_bytes(pickled(state))
    pulled = pull("test_vit", tmp_path)
    assert pulled.converted and pulled.path == tmp_path / "test_vit.safetensors"


def test_a_wrong_local_file_leaves_nothing(tmp_path: Path) -> None:
    write_tensors(tmp_path / "mine.safetensors", build_backbone("test_efficientnet").state_dict())
    with pytest.raises(WeightsError, match=r"mine\.safetensors does not fit test_vit"):
        pull("test_vit", tmp_path / "weights", tmp_path / "mine.safetensors")
    assert held(tmp_path / "weights") == []


def test_a_damaged_file_in_the_folder_is_not_replaced_silently(tmp_path: Path, state: dict[str, Any]) -> None:
    path = write_tensors(tmp_path / "test_vit.safetensors", state)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"already there, but not good[\s\S]*move it away"):
        pull("test_vit", tmp_path)
    assert path.is_file()
