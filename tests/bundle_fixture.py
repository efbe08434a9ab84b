"""A tiny run, its blend and its bundle on real files: two micro-networks, two folds, patches drawn at random.

Everything is what `midog train` and `midog blend` leave behind, made by the same functions but for the training itself:
the fold models are pushed away from their start instead.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Picture

from augment.views import VIEW_NAMES
from midog.data.patches import Patch, PatchTable
from midog.data.pixels import open_pixels
from midog.files import sha256_file, write_json
from midog.models.backbones import find_backbone
from midog.models.classifier import Network, build_classifier, save_fold
from midog.models.preprocess import Image
from midog.models.tuning import Frozen, Full, Lora
from midog.run import Oof, write_oof

SIZE = 64
NETWORKS = {
    "vit": Network(find_backbone("timm/test_vit"), "random", Image(size=SIZE), Lora(rank=2), seed=1),
    "effnet": Network(find_backbone("timm/test_efficientnet"), "random", Image(size=SIZE), Full(), seed=2),
    "probe": Network(find_backbone("timm/test_vit"), "random", Image(crop=64, size=SIZE), Frozen(), seed=1),
}
POINTS = {
    "full": (("vit", "effnet", "probe"), (0.5, 0.3, 0.2), "rot4"),
    "full/1": (("vit", "effnet", "probe"), (0.5, 0.3, 0.2), "none"),
    "fast": (("vit",), (1.0,), "none"),
    "only:vit": (("vit",), (1.0,), "rot4"),
    "only:vit/1": (("vit",), (1.0,), "none"),
    "without:vit": (("effnet", "probe"), (0.6, 0.4), "d4"),
}
PREVALENCE = 0.25


def draw_patches(n: int, seed: int = 0) -> np.ndarray:
    """(n, 128, 128, 3) uint8: smooth random blobs, so that networks see structure."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(16, axis=1).repeat(16, axis=2)


def make_table(folder: Path, n: int = 12) -> PatchTable:
    """`n` patches as PNG files, a quarter of them `test`; writes patches.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    patches = []
    for i, pixels in enumerate(draw_patches(n)):
        Picture.fromarray(pixels).save(folder / f"{i}.png")
        test = i % 4 == 3
        split, fold = ("test", None) if test else ("train", i % 2)
        patches.append(Patch(f"tiny/{i}", f"{i}.png", int(i % 3 == 0), f"case{i}", f"dom{i % 2}", split, fold))
    table = PatchTable(tuple(patches), folder)
    table.write(folder / "patches.csv")
    return table


def make_run(folder: Path, table: PatchTable, networks: dict[str, Network] = NETWORKS) -> Path:
    """A run folder with `networks` as members, fold models pushed at random."""
    folder.mkdir(parents=True)
    table.write(folder / "patches.csv", absolute=True)
    train = table.subset(table.folds >= 0)
    members = {name: {"training": {"epochs": 1}} for name in networks}
    (folder / "recipe.yaml").write_text(json.dumps({"folds": "fold", "members": members}))
    pixels = open_pixels(train)
    write_json(
        folder / "manifest.json",
        {
            "fold_names": ["0", "1"],
            "seed": 0,
            "data_sha256": train.data_hash,
            "folds_sha256": train.folds_hash,
            "training_pixels": sorted(set(pixels.hashes)),
        },
    )
    for name, network in networks.items():
        for k in range(2):
            _make_fold(folder / name / f"fold_{k}", network, k, train)
    return folder


def _make_fold(folder: Path, network: Network, k: int, train: PatchTable) -> None:
    folder.mkdir(parents=True)
    classifier = build_classifier(network)
    generator = torch.Generator().manual_seed(100 * network.seed + k)
    with torch.no_grad():
        for parameter in classifier.parameters():
            if parameter.requires_grad:
                scale = 0.1 * float(parameter.abs().mean()) + 0.02
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        # A batch norm that trained has other statistics, too: buffers are part of a fold model.
        for name, buffer in classifier.backbone.named_buffers():
            if name.endswith("running_mean") and isinstance(network.tune, Full):
                buffer.add_(0.05 * torch.randn(buffer.shape, generator=generator))
    save_fold(classifier.eval(), folder / "model.safetensors", {"member": "x", "fold": k})
    left_out = train.subset(train.folds == k)
    logits = np.random.default_rng(k).normal(size=(len(left_out), len(VIEW_NAMES)))
    write_oof(folder / "oof.csv", Oof(left_out.ids, left_out.folds, logits))
    done = {
        "network": network.to_dict(),
        "model_sha256": sha256_file(folder / "model.safetensors"),
        "oof_sha256": sha256_file(folder / "oof.csv"),
        "identity": {"pretrained": f"random {network.seed}"},
    }
    write_json(folder / "done.json", done)


def make_blend(folder: Path, run: Path, networks: dict[str, Network] = NETWORKS, points: dict = POINTS) -> Path:
    """A blend.json over all members of `run`."""
    members = []
    for name, network in networks.items():
        folds = {}
        for k in range(2):
            file = run / name / f"fold_{k}" / "model.safetensors"
            folds[str(k)] = {"path": str(file), "sha256": sha256_file(file)}
        members.append({"name": name, "run": str(run), "member": name, "folds": folds, "network": network.to_dict()})
    content = {
        name: {
            "name": name,
            "members": list(names),
            "weights": list(weights),
            "views": views,
            "shift": 0.1 * len(names),
            "temperature": 1.5,
            "threshold": 0.4,
            "fold_models": int(name == "fast"),
        }
        for name, (names, weights, views) in points.items()
    }
    write_json(folder / "blend.json", {"members": members, "points": content, "prevalence": PREVALENCE})
    return folder
