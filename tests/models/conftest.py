"""Patches, a folder of real weights, and a trainer of a few steps, for the tests of the models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from midog.models.classifier import Classifier, Network, build_classifier
from midog.training.optimise import trained_parameters


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_weights_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests say themselves where weights lie."""
    monkeypatch.delenv("MIDOG_WEIGHTS", raising=False)
    monkeypatch.delenv("MIDOG_DATA", raising=False)


def _data() -> Path:
    fallback = Path(__file__).parents[2].parent / "shared" / "data"
    return Path(os.environ.get("MIDOG_DATA") or fallback)


DATA = _data()


@pytest.fixture
def real_weights() -> Path:
    if not (DATA / "weights").is_dir():
        pytest.skip(f"no real weights: {DATA / 'weights'} does not exist (set MIDOG_DATA)")
    return DATA / "weights"


@pytest.fixture
def photographs() -> list[Path]:
    """One ImageNet photograph per class, in the order of the classes."""
    folder = DATA / "targets" / "imagenet_256"
    if not folder.is_dir():
        pytest.skip(f"no photographs: {folder} does not exist (set MIDOG_DATA)")
    return sorted(folder.glob("*.jpg"))


@pytest.fixture
def patches() -> NDArray[np.uint8]:
    """(6, 128, 128, 3) uint8: smooth random blobs, so that resizing matters little and networks see structure."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(16, axis=1).repeat(16, axis=2)


def _train(network: Network, patches: NDArray[np.uint8], weights: Path | None = None, seed: int = 0) -> Classifier:
    """A classifier whose every trainable tensor has really moved: three steps, then a random push.

    A few steps alone would leave adapters near their zero start and hide an error in merging them.
    """
    classifier = build_classifier(network, weights)
    optimiser = torch.optim.SGD(trained_parameters(classifier).values(), lr=0.05)
    x, label = classifier.prepare(patches), torch.arange(len(patches)) % 2
    for _ in range(3):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(classifier(x), label.float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in classifier.named_parameters():
            if parameter.requires_grad:
                push = torch.randn(parameter.shape, generator=generator)
                parameter.add_(push * (0.5 if "lora_B" in name else 0.1 * float(parameter.abs().mean()) + 0.02))
    return classifier.eval()


@pytest.fixture
def train() -> Callable[..., Classifier]:
    return _train
