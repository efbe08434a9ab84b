"""Bundles of random weights: what training, blending and packing would leave behind, for measurements alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from midog.models.network import Network


def recipe_bundle(folder: Path, recipe: str = "demo", folds: int = 2) -> Path:
    """An unpacked bundle with the networks of a recipe and four views; imports torch. Returns it."""
    from midog.recipe import load_recipe
    from midog.training.member import network_of

    loaded = load_recipe(recipe, ["each.pretrained=random"])
    return write_bundle(folder, {name: network_of(member) for name, member in loaded.members.items()}, folds, "rot4")


def copies_bundle(folder: Path, backbone: str, copies: int, folds: int, views: str) -> Path:
    """An unpacked bundle of `copies` members, each with weights of its own and `folds` low-rank adapters; see above."""
    from midog.models.backbones import find_backbone
    from midog.models.network import Network
    from midog.models.tuning import Lora

    record = find_backbone(backbone)
    networks = {f"copy{k}": Network(record, "random", tune=Lora(rank=8), seed=k) for k in range(copies)}
    return write_bundle(folder, networks, folds, views)


def write_bundle(folder: Path, networks: Mapping[str, Network], folds: int, views: str) -> Path:
    """An unpacked bundle with one operating point, `full`, in which all networks weigh the same. Returns it."""
    from midog.archive import manifest_bytes
    from midog.files import sha256_file, write_bytes, write_json

    entries: list[dict[str, Any]] = []
    for name, network in networks.items():
        backbone, files = _write_member(folder, name, network, folds)
        entries.append({"name": name, "backbone": backbone, "folds": files, "network": network.to_dict()})
    names = [entry["name"] for entry in entries]
    point: dict[str, Any] = {"name": "full", "members": names, "weights": [1 / len(names)] * len(names)}
    point |= {"views": views, "shift": 0.0, "temperature": 1.0, "threshold": 0.5}
    members = [
        {
            "name": entry["name"],
            "run": "",
            "member": entry["name"],
            "network": entry["network"],
            "folds": {k: {"path": file, "sha256": sha256_file(folder / file)} for k, file in entry["folds"].items()},
        }
        for entry in entries
    ]
    write_json(folder / "blend.json", {"members": members, "points": {"full": point}, "prevalence": 0.2})
    stored = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    listed = {name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for name, file in stored.items()}
    content = {"midog": "0", "members": entries, "files": listed, "training": {"patches": 0, "pixels": []}}
    write_bytes(folder / "manifest.json", manifest_bytes(content))
    return folder


def _write_member(folder: Path, name: str, network: Network, folds: int) -> tuple[str | None, dict[str, str]]:
    """Fold models as training leaves them, everything trained being moved; the backbone's file where one is needed."""
    import torch

    from midog.models.classifier import BACKBONE, backbone_state, build_classifier, round_trained, save_fold
    from midog.models.weights import TensorFile, write_tensors

    files = {}
    classifier = build_classifier(network)
    generator = torch.Generator().manual_seed(network.seed)
    for k in range(folds):
        with torch.no_grad():
            for key, tensor in classifier.backbone.state_dict().items():
                if key.endswith("lora_B.default.weight"):
                    tensor.normal_(std=0.01, generator=generator)
                elif key in classifier.pretrained:
                    tensor.add_(0.01 if tensor.is_floating_point() else 1)
        round_trained(classifier)
        files[str(k)] = f"members/{name}/fold_{k}.safetensors"
        save_fold(classifier, folder / files[str(k)])
    held = TensorFile(folder / files["0"]).names
    left = {key: value for key, value in backbone_state(classifier).items() if BACKBONE + key not in held}
    if not left:
        return None, files
    backbone = f"backbones/{name}.safetensors"
    write_tensors(folder / backbone, left, {"content": "backbone"})
    return backbone, files
