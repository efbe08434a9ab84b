"""What `midog container test` compares an image with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from midog.cli import run
from submission.proof import Proof, opened
from submission.trial.runners import Conditions, ProcessRunner


def test_answers_are_compared_on_the_device_that_the_container_has(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with a GPU, a container that is not shown it: the bundle answers on the processor, too."""
    plan = Proof(str(tiny_bundle), "midog:latest", None, True, "baked", None, 1 << 30, False, tmp_path)
    pages = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    expected = opened(plan).predict(pages, mpp=None).confidence
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    np.testing.assert_array_equal(opened(plan).predict(pages, mpp=None).confidence, expected)
    assert opened(replace(plan, gpu=True)).device == "auto"


def test_a_plain_process_is_shown_no_gpu(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ProcessRunner(enclosed=False).ask("import os; print(os.environ['CUDA_VISIBLE_DEVICES'])", Conditions())
    assert (said.status, said.stdout) == (0, b"\n")
    assert run(["container", "test", str(tiny_bundle), "--no-engine", "--gpu"]) == 2
    assert "leave one of them out" in capsys.readouterr().err
