"""Batches: the same bytes for the same key, whoever makes them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from midog.training.batches import Samples, epoch_batches, steps_per_epoch

KEY = (0, "member", 1, 2)


def noise(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    return np.asarray(image + rng.integers(0, 100, image.shape, dtype=np.uint8), dtype=np.uint8)


@pytest.fixture
def samples() -> Samples:
    images = np.random.default_rng(0).integers(0, 100, (10, 128, 128, 3), dtype=np.uint8)
    targets = np.linspace(0, 1, 5, dtype=np.float32)
    return Samples(images, np.array([9, 7, 5, 3, 1]), targets, np.ones(5, dtype=np.float32), [noise] * 5)


def test_workers_do_not_change_a_byte(samples: Samples) -> None:
    order = np.array([0, 1, 2, 3, 4, 0, 1, 2])
    made = [list(epoch_batches(samples, order, 2, KEY, workers)) for workers in (0, 1, 3)]
    for other in made[1:]:
        assert all(np.array_equal(a.images, b.images) for a, b in zip(made[0], other, strict=True))


def test_a_patch_drawn_twice_is_augmented_twice_differently(samples: Samples) -> None:
    first, second = epoch_batches(samples, np.array([3, 3]), 1, KEY)
    assert first.targets == second.targets == samples.targets[3]
    assert not np.array_equal(first.images, second.images)


def test_another_epoch_fold_member_or_seed_augments_differently(samples: Samples) -> None:
    keys = [KEY, (1, "member", 1, 2), (0, "other", 1, 2), (0, "member", 2, 2), (0, "member", 1, 3)]
    images = [next(epoch_batches(samples, np.array([0]), 1, key)).images.tobytes() for key in keys]
    assert len(set(images)) == len(keys)


def test_rows_point_into_all_images(samples: Samples) -> None:
    plain = Samples(samples.images, samples.rows, samples.targets, samples.weights, [lambda image, rng: image] * 5)
    batch = next(epoch_batches(plain, np.array([1, 4]), 2, KEY))
    assert np.array_equal(batch.images, samples.images[np.array([7, 1])])
    assert batch.targets.tolist() == [0.25, 1.0]


@pytest.mark.parametrize(("n", "batch", "steps"), [(10, 4, 2), (3, 4, 1), (8, 4, 2)])
def test_an_epoch_has_whole_batches_or_one(n: int, batch: int, steps: int, samples: Samples) -> None:
    assert steps_per_epoch(n, batch) == steps
    order = np.arange(n) % 5
    assert len(list(epoch_batches(samples, order, batch, KEY))) == steps


def test_an_error_in_the_background_comes_to_the_front(samples: Samples) -> None:
    def broken(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        raise RuntimeError("cannot augment")

    bad = Samples(samples.images, samples.rows, samples.targets, samples.weights, [broken] * 5)
    with pytest.raises(RuntimeError, match="cannot augment"):
        list(epoch_batches(bad, np.array([0, 1]), 1, KEY))
