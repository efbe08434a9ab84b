"""Fixtures that more than one room's tests share."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bundle_fixture import make_blend, make_run, make_table

from midog.bundle import pack
from midog.data.patches import PatchTable

# Decoded patches of tests do not belong into the user's cache; real ones may stay for the next run of the tests.
os.environ.setdefault("MIDOG_CACHE", str(Path(tempfile.gettempdir()) / "midog-tests-cache"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes on one thread: tiny networks are slower on several, and add up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_table(tmp_path_factory: pytest.TempPathFactory) -> PatchTable:
    """Twelve drawn patches on disk, three of them `test`."""
    return make_table(tmp_path_factory.mktemp("tiny") / "patches")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_table: PatchTable) -> Path:
    return make_run(tmp_path_factory.mktemp("tiny") / "run", tiny_table)


@pytest.fixture(scope="session")
def tiny_blend(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    return make_blend(tmp_path_factory.mktemp("tiny") / "blend", tiny_run)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_blend: Path) -> Path:
    """A packed bundle, model.tar.gz."""
    return pack(tiny_blend, tmp_path_factory.mktemp("tiny") / "model.tar.gz")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """The same bundle unpacked, as the platform does it."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    folder.mkdir()
    with tarfile.open(tiny_bundle) as archive:
        archive.extractall(folder, filter="data")
    return folder
