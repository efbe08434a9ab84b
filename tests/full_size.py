"""A full-size ensemble through the real commands: train, blend, bundle, predict, the container's entry point.

    python tests/full_size.py FOLDER [--patches 12]

Four backbones of ViT-L and ViT-H size with random weights, two LoRA fold models each, a few steps on real patches. At
so high a rate the adapters' B matrices leave zero far behind: fold models differ by more than 0.1 logit, so that a
mix-up of folds, adapters or backbones would show. What is compared: the logits of `midog predict` with the mean of the
fold models' as the run left them, and the entry point's confidences with those of `midog predict`.

An hour on two cores and 8 GB of disk; no part of the test command. MIDOG_DATA names the data.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

RECIPE = """
folds: fold
each:
  pretrained: random
  augment: light
  tune: {kind: lora, rank: 8, alpha: 16}
  training: {epochs: 1, batch: 3, lr: 2e-2, warmup: 0, clip: 0}
members:
  uni: {}
  gpfm: {}
  virchow: {}
  virchow2: {}
blend: {kind: equal, views: none}
"""


def midog(*arguments: str | Path) -> float:
    """Run a command of the package; the seconds it took."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "midog", *map(str, arguments)], check=True)
    return time.perf_counter() - began


def table(folder: Path, patches: int) -> Path:
    """patches.csv of a few real patches, each of another case, half of them atypical, two folds."""
    from midog.data.folds import make_folds
    from midog.data.readers import read_layout

    whole = read_layout([Path(os.environ["MIDOG_DATA"]) / "amibr"])
    chosen: list[int] = []
    for label in (0, 1):
        seen = {whole.patches[row].case for row in chosen}
        for row in np.flatnonzero(whole.labels == label):
            if whole.patches[row].case not in seen and sum(whole.labels[chosen] == label) < patches // 2:
                chosen.append(int(row))
                seen.add(whole.patches[row].case)
    return make_folds(whole.subset(np.array(chosen)), "grouped:2:0").write(folder / "patches.csv", absolute=True)


def by_hand(run: Path, patches: Path) -> dict[str, np.ndarray]:
    """(folds, n) logits of each member's fold models on all patches, straight from the run's files."""
    from midog.data.patches import read_table
    from midog.data.pixels import open_pixels
    from midog.models.classifier import pretrained_state
    from midog.models.inference import Inference
    from midog.models.network import Network
    from midog.models.predict import predict_logits
    from midog.run import open_run

    opened, pixels, found = open_run(run), open_pixels(read_table(patches)), {}
    for name in opened.members:
        network = Network.from_dict(opened.network(name))
        inference = Inference(network, pretrained_state(network))
        rows = []
        for k in range(2):
            model = inference.switch(opened.fold_folder(name, k) / "model.safetensors")
            rows.append(predict_logits(model, pixels, device="cpu", batch=8)[:, 0])
            stored = opened.oof(name)
            mine = stored.folds == k
            difference = np.abs(stored.logits[mine, 0] - rows[-1][mine]).max()
            print(f"{name} fold {k}: out of fold and reloaded differ by {difference:.1e}")
        found[name] = np.stack(rows)
        print(f"{name}: fold models differ by {np.abs(found[name][0] - found[name][1]).max():.3f} logits at most")
    return found


def entry_point(folder: Path, bundle: Path, patches: Path) -> np.ndarray:
    """Confidences of the container's entry point on a stack of all patches, in a fresh process."""
    from midog.data.patches import read_table
    from midog.data.pixels import open_pixels
    from submission.stack import write_job

    images = open_pixels(read_table(patches))
    job = write_job(folder / "job", list(images[np.arange(len(images))]))
    out = folder / "output"
    out.mkdir(exist_ok=True)
    command = ["-m", "submission.inference", "--input", job, "--output", out, "--model", bundle]
    began = time.perf_counter()
    subprocess.run([sys.executable, *map(str, command)], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"entry point: {time.perf_counter() - began:.0f} s, largest child so far {peak:.1f} GB")
    answers = json.loads((out / "multiple-mitotic-figure-classification.json").read_text())
    return np.array([answer["confidence"] for answer in answers])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patches", type=int, default=12)
    asked = parser.parse_args()
    folder: Path = asked.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "giants.yaml").write_text(RECIPE)
    patches, run, bundle = table(folder, asked.patches), folder / "run", folder / "model.tar.gz"
    print(f"train: {midog('train', folder / 'giants.yaml', patches, '-o', run):.0f} s")
    print(f"blend: {midog('blend', run, '-o', folder / 'blend'):.0f} s")
    print(f"bundle: {midog('bundle', folder / 'blend', '-o', bundle):.0f} s, {bundle.stat().st_size / 1e9:.2f} GB")
    print(f"predict: {midog('predict', bundle, patches, '-o', folder / 'out.csv'):.0f} s")
    with (folder / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    predicted = np.array([float(row["logit"]) for row in rows])
    confidence = np.array([float(row["confidence"]) for row in rows])
    members = by_hand(run, patches)
    expected = np.mean([folds.mean(axis=0) for folds in members.values()], axis=0)
    apart = min(float(np.abs(folds[0] - folds[1]).max()) for folds in members.values())
    differences = {
        "midog predict and the run's fold models, logits": float(np.abs(predicted - expected).max()),
        "entry point and midog predict, confidences": float(
            np.abs(entry_point(folder, bundle, patches) - confidence).max()
        ),
    }
    for what, difference in differences.items():
        print(f"{what}: differ by at most {difference:.1e}")
    good = apart > 0.1 and max(differences.values()) < 1e-4
    print("passed" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
