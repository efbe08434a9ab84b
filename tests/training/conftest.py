"""A small run for real: drawn patches on disk, two folds, a micro-model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from midog.data.folds import make_folds
from midog.data.patches import PatchTable, read_table
from midog.data.readers import read_layout
from midog.data.synthetic import draw
from midog.recipe import Recipe, load_recipe
from midog.training.launch import train_recipe

ONE_MEMBER = """
each:
  pretrained: random
  image: {crop: 64, size: 32}
  augment: light
  training: {epochs: 20, batch: 8, lr: 1e-3, warmup: 0.5, ema: 0.9}
members:
  micro: {backbone: test_efficientnet, tune: full}
"""


@pytest.fixture(scope="session")
def table_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """patches.csv of 48 drawn patches, 12 cases, three scanners, two folds."""
    folder = tmp_path_factory.mktemp("drawn")
    table = read_layout([draw(folder, cases=12, per_case=4)])
    return make_folds(table, "grouped:2:0").write(folder / "patches.csv")


@pytest.fixture(scope="session")
def table(table_path: Path) -> PatchTable:
    return read_table(table_path)


@pytest.fixture(scope="session", autouse=True)
def pixel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIDOG_CACHE", str(cache))
        yield cache


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    path = tmp_path / "micro.yaml"
    path.write_text(ONE_MEMBER)
    return path


@pytest.fixture
def recipe(recipe_path: Path) -> Recipe:
    return load_recipe(recipe_path)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, table: PatchTable) -> Path:
    """The run of one fold that nothing interrupted, on one thread."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "micro.yaml").write_text(ONE_MEMBER)
    train_recipe(load_recipe(folder / "micro.yaml"), table, folder / "run", folds=[0], threads=1)
    return folder / "run"
