"""Losses beside the task's: closed forms, invariances, and what they leave of a training."""

from __future__ import annotations

import math
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from midog.data.patches import PatchTable
from midog.errors import DataError, UsageError
from midog.files import read_json
from midog.models.weights import TensorFile
from midog.recipe import Recipe, load_recipe
from midog.robustness.stability import coefficient_of_variation
from midog.status import read_log
from midog.training.auxiliary import (
    DomainAdversary,
    ScannerContrastLoss,
    Seen,
    build_auxiliary,
    margin_contrast,
    ramp,
    reverse_gradient,
    softmax_contrast,
    standardised,
)
from midog.training.auxiliary_settings import AUXILIARIES, DomainAdversarial, ScannerContrast
from midog.training.fold import start
from midog.training.identity import differences
from midog.training.launch import train_recipe
from midog.training.machine import Machine, claim
from midog.training.optimise import build_optimizer
from midog.training.patches import fold_patches
from midog.training.source import gather

SPECIMENS, SCANNERS = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 0, 1, 0, 1])
"""Three specimens on two scanners."""
BOTH = pytest.mark.parametrize("negatives", ["anchor_scanner", "positive_scanner"])


def contrast(z: torch.Tensor, negatives: str = "anchor_scanner", tau: float = 0.1) -> torch.Tensor:
    return softmax_contrast(z, SPECIMENS, SCANNERS, 2, tau, negatives)


def by_hand(z: torch.Tensor, specimens: Any, scanners: Any, tau: float, negatives: str) -> float:
    """The formula as a loop."""
    s, n = (z @ z.T / tau).double().tolist(), len(z)
    anchors = []
    for i in range(n):
        terms = []
        for j in range(n):
            if specimens[i] == specimens[j] and scanners[i] != scanners[j]:
                at = scanners[i] if negatives == "anchor_scanner" else scanners[j]
                beside = sum(math.exp(s[i][k]) for k in range(n) if specimens[k] != specimens[i] and scanners[k] == at)
                terms.append(math.log(math.exp(s[i][j]) + beside) - s[i][j])
        if terms:
            anchors.append(sum(terms) / len(terms))
    return sum(anchors) / len(anchors)


@BOTH
def test_equal_projections_give_the_logarithm_of_what_is_compared(negatives: str) -> None:
    z = F.normalize(torch.ones(6, 4), dim=1)
    assert float(contrast(z, negatives)) == pytest.approx(math.log(3), abs=1e-6)


@BOTH
@pytest.mark.parametrize("tau", [0.05, 0.1, 1.0])
def test_orthogonal_specimens_and_identical_positives(negatives: str, tau: float) -> None:
    z = torch.eye(3)[SPECIMENS]
    assert float(contrast(z, negatives, tau)) == pytest.approx(math.log(1 + 2 * math.exp(-1 / tau)), abs=1e-6)


@BOTH
def test_it_is_the_formula_also_where_pairs_are_uneven(negatives: str) -> None:
    generator = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(12, 5, generator=generator), dim=1)
    specimens = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 5])
    scanners = torch.tensor([0, 1, 2, 0, 1, 2, 1, 1, 0, 2, 2, 0])
    found = float(softmax_contrast(z, specimens, scanners, 3, 0.2, negatives))
    assert found == pytest.approx(by_hand(z, specimens.tolist(), scanners.tolist(), 0.2, negatives), abs=1e-5)


@BOTH
def test_names_of_scanners_and_specimens_do_not_matter(negatives: str) -> None:
    z = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    renamed = softmax_contrast(z, torch.tensor([7, 4, 9])[SPECIMENS], 1 - SCANNERS, 2, 0.1, negatives)
    assert float(renamed) == pytest.approx(float(contrast(z, negatives)), abs=1e-6)


@pytest.mark.parametrize("variant", ["softmax", "margin"])
def test_one_scanner_gives_a_zero_with_a_graph(variant: str) -> None:
    torch.manual_seed(0)
    settings = ScannerContrast(variant=variant, margin=1.0)
    features = torch.randn(4, 6, requires_grad=True)
    seen = Seen(features, torch.zeros(4), torch.arange(4), torch.zeros(4, dtype=torch.int64), 0.5)
    value = ScannerContrastLoss(settings, 6, 2)(seen)
    value.backward()
    assert float(value.detach()) == 0 and features.grad is not None and not features.grad.any()


@pytest.mark.parametrize(("negatives", "grows"), [("anchor_scanner", True), ("positive_scanner", False)])
def test_what_a_scanner_adds_costs_or_cancels(negatives: str, grows: bool) -> None:
    """Unnormalised features: a component that all patches of a scanner share."""
    content = torch.cat([torch.eye(3)[SPECIMENS], torch.zeros(6, 2)], dim=1)
    scanner = torch.cat([torch.zeros(6, 3), torch.eye(2)[SCANNERS]], dim=1)
    losses = [float(contrast(content + a * scanner, negatives, 1.0)) for a in (0, 0.5, 1, 2)]
    if grows:
        assert all(later > earlier + 0.01 for earlier, later in pairwise(losses))
    else:
        assert losses == pytest.approx([losses[0]] * 4, abs=1e-6)


@pytest.mark.parametrize("variant", ["softmax", "margin"])
def test_one_step_brings_positives_closer(variant: str) -> None:
    torch.manual_seed(3)
    z = torch.randn(6, 8, requires_grad=True)

    def positives() -> float:
        unit = F.normalize(z.detach(), dim=1)
        return float((unit[::2] * unit[1::2]).sum(dim=1).mean())

    before, unit = positives(), F.normalize(z, dim=1)
    value = contrast(unit) if variant == "softmax" else margin_contrast(unit, SPECIMENS, SCANNERS, 0.5)
    value.backward()
    with torch.no_grad():
        z -= 0.1 * z.grad
    assert positives() > before


def test_the_margin_variant_in_closed_form() -> None:
    z = torch.tensor([[1.0, 0], [0.6, 0.8], [1, 0], [0.6, 0.8]])
    specimens, scanners = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    assert float(margin_contrast(z, specimens, scanners, 0.5)) == pytest.approx(0.4 + 0.5)
    assert float(margin_contrast(z, specimens, scanners, 1.0)) == pytest.approx(0.4)


@torch.no_grad()
def test_labels_stand_in_for_specimens_in_one_mode_alone() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(6, 5), torch.tensor([0, 0, 1, 1, 0, 1])
    seen = Seen(features, labels, SPECIMENS, SCANNERS, 0.0)
    by_label = ScannerContrastLoss(ScannerContrast(mode="cross_scanner_label", weight=1), 5, 2)
    by_specimen = ScannerContrastLoss(ScannerContrast(weight=1), 5, 2)
    by_specimen.load_state_dict(by_label.state_dict())
    assert float(by_label(seen)) == pytest.approx(float(by_specimen(replace(seen, specimens=labels))))
    assert float(by_label(seen)) != pytest.approx(float(by_specimen(seen)))


def test_a_reversed_gradient() -> None:
    x, w = torch.tensor([1.0, 2, 3], requires_grad=True), torch.tensor([0.5, -1, 2])
    value = (w * reverse_gradient(x, 0.3)).sum()
    value.backward()
    assert float(value.detach()) == pytest.approx(0.5 - 2 + 6)
    torch.testing.assert_close(x.grad, -0.3 * w)


def test_the_ramp_of_the_reversal() -> None:
    assert ramp(0) == 0 and ramp(1) == pytest.approx(0.9999092) and ramp(0.5) == pytest.approx(math.tanh(2.5))


@pytest.mark.parametrize("hidden", [0, 7])
def test_an_adversary_learns_forwards_and_teaches_backwards(hidden: int) -> None:
    """Backwards where it knows a patch better than chance does, and not at all where it does not."""
    torch.manual_seed(0)
    adversary = DomainAdversary(DomainAdversarial(weight=0.2, hidden=hidden), 5, 3)
    plain = DomainAdversary(DomainAdversarial(weight=0.2, hidden=hidden), 5, 3)
    plain.load_state_dict(adversary.state_dict())
    features, scanners = torch.randn(9, 5, requires_grad=True), torch.arange(9) % 3
    adversary(Seen(features, torch.zeros(9), torch.arange(9), scanners, 1.0)).backward()
    same = features.detach().clone().requires_grad_(True)
    x = standardised(same)
    x.retain_grad()
    each = F.cross_entropy(plain.classifier(x), scanners, reduction="none")
    each.mean().backward()
    known = (each < math.log(3)).float()[:, None]
    assert 0 < known.mean() < 1, "both kinds must occur"
    again = features.detach().clone().requires_grad_(True)
    standardised(again).backward(-0.2 * ramp(1.0) * known * x.grad)
    torch.testing.assert_close(features.grad, again.grad)
    for ours, theirs in zip(adversary.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert adversary.notes() == {"domain_loss": pytest.approx(float(each.mean().detach()))} and not adversary.notes()


def test_an_adversary_takes_the_scanner_out_of_features_and_leaves_the_label() -> None:
    """Drawn vectors that hold both beside noise; a member that may only weigh their parts gives the scanner's none."""
    scanners, labels = torch.arange(240) % 3, (torch.arange(240) // 3) % 2
    held = torch.zeros(240, 8)
    held[:, 0], held[:, 1] = 4.0 * (scanners - 1), 4.0 * labels
    torch.manual_seed(0)
    body, head = nn.ParameterList([torch.ones(8)]), nn.Linear(8, 1)
    adversary = DomainAdversary(DomainAdversarial(weight=1.0), 8, 3)
    optimizer = build_optimizer(nn.ModuleList([body, head]), "adam", 1e-2, 0.0, adversary, adversary.pace)
    for step in range(400):
        optimizer.zero_grad()
        features = held * body[0] + torch.randn(240, 8)
        task = F.binary_cross_entropy_with_logits(head(features)[:, 0], labels.float())
        (task + adversary(Seen(features, labels, torch.arange(240), scanners, step / 400))).backward()
        optimizer.step()
    weights = body[0].detach()
    assert weights[0].abs() < 0.2 and weights[1] > 0.8


def test_variation_over_scanner_views() -> None:
    assert coefficient_of_variation(np.full((3, 2), 0.4)).tolist() == [0, 0, 0]
    assert coefficient_of_variation(np.array([[0.2, 0.6]]))[0] == pytest.approx(0.4 / 0.8)


@pytest.mark.parametrize("settings", [DomainAdversarial(), ScannerContrast(), ScannerContrast(variant="margin")])
def test_every_loss_is_one_interface(settings: Any) -> None:
    auxiliary = build_auxiliary(settings, 6, 2)
    value = auxiliary(Seen(torch.randn(6, 6), SCANNERS, SPECIMENS, SCANNERS, 0.2))
    assert value.shape == () and bool(torch.isfinite(value)) and AUXILIARIES[settings.kind] is type(settings)


# ── in training ───────────────────────────────────────────────────────────────────────────────────────────────────

DANN = "each.auxiliary={kind: domain_adversarial, weight: %s}"
QUICK = ["each.training.epochs=3", "each.training.clip=0.05"]


def trained(recipe_path: Path, table: PatchTable, run: Path, sets: list[str]) -> tuple[bytes, bytes]:
    train_recipe(load_recipe(recipe_path, [*QUICK, *sets]), table, run, folds=[0], threads=1)
    folder = run / "micro" / "fold_0"
    # The file's header keeps the identity, which differs: the tensors are what counts.
    file = TensorFile(folder / "model.safetensors")
    return b"".join(file[name].numpy().tobytes() for name in file.names), (folder / "oof.csv").read_bytes()


def test_an_adversary_that_is_not_heard_changes_nothing(recipe_path: Path, table: PatchTable, tmp_path: Path) -> None:
    """Also where gradients are clipped, with a running mean and with batch norms."""
    without = trained(recipe_path, table, tmp_path / "without", [])
    assert trained(recipe_path, table, tmp_path / "silent", [DANN % 0]) == without
    assert trained(recipe_path, table, tmp_path / "loud", [DANN % 2]) != without


@pytest.mark.parametrize(
    "kind",
    [
        "scanner_contrast, mode: pseudo",
        "scanner_contrast, mode: pseudo, style: fourier",
        "scanner_contrast, mode: cross_scanner_label",
        "adversarial",
        "adversarial, steps: 3",
    ],
)
def test_it_trains_and_leaves_no_trace_in_the_fold_model(
    kind: str, recipe_path: Path, table: PatchTable, tmp_path: Path
) -> None:
    own = [f"each.auxiliary={{kind: {kind}}}"]
    train_recipe(load_recipe(recipe_path, [*QUICK, *own]), table, tmp_path / "run", folds=[0], threads=1)
    train_recipe(load_recipe(recipe_path, QUICK), table, tmp_path / "plain", folds=[0], threads=1)
    files = [TensorFile(tmp_path / run / "micro" / "fold_0" / "model.safetensors") for run in ("run", "plain")]
    assert sorted(files[0].names) == sorted(files[1].names)
    losses = [line["loss"] for line in read_log(tmp_path / "run" / "micro" / "fold_0")]
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)
    assert any(not torch.equal(files[0][name], files[1][name]) for name in files[0].names)
    assert "auxiliary" not in files[0].about["network"]


TRAIN = """
import sys
from pathlib import Path
from midog.data.patches import read_table
from midog.recipe import load_recipe
from midog.training.launch import train_recipe
train_recipe(load_recipe(sys.argv[1], sys.argv[4:]), read_table(sys.argv[2]), Path(sys.argv[3]), folds=[0], threads=1)
"""


@pytest.mark.parametrize("auxiliary", ["domain_adversarial", "scanner_contrast", "adversarial"])
def test_killed_at_a_random_moment_it_ends_in_the_same_bytes(
    auxiliary: str, recipe_path: Path, table_path: Path, table: PatchTable, tmp_path: Path
) -> None:
    sets = ["each.training.epochs=8", f"each.auxiliary={auxiliary}"]
    recipe = load_recipe(recipe_path, sets)
    train_recipe(recipe, table, tmp_path / "whole", folds=[0], threads=1)
    command = [sys.executable, "-c", TRAIN, recipe_path, table_path, tmp_path / "killed", *sets]
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE)
    checkpoint = tmp_path / "killed" / "micro" / "fold_0" / "last.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists(), "killed too early or too late"
    for prefix in ("auxiliary.", "optimizer.exp_avg.auxiliary."):  # an attack has no parameters
        assert any(n.startswith(prefix) for n in TensorFile(checkpoint).names) == (auxiliary != "adversarial")
    train_recipe(recipe, table, tmp_path / "killed", folds=[0], threads=1)
    for name in ("model.safetensors", "oof.csv"):
        whole, killed = ((tmp_path / run / "micro" / "fold_0" / name).read_bytes() for run in ("whole", "killed"))
        assert whole == killed


def test_the_identity_of_earlier_runs_stays(reference: Path) -> None:
    new = read_json(reference / "micro" / "fold_0" / "done.json")["identity"]
    old = {key: value for key, value in new.items() if key != "pairs_sha256"}
    old["member"] = {key: value for key, value in new["member"].items() if key != "auxiliary"}
    assert differences(old, new) == []
    on = {**new, "member": {**new["member"], "auxiliary": {"kind": "domain_adversarial", "weight": 0.1}}}
    assert differences(new, on) == ["member.auxiliary: off made it, on is asked for"]


def test_what_is_off_makes_nothing(recipe: Recipe, table: PatchTable) -> None:
    source = gather(recipe, table)
    patches = fold_patches(recipe.members["micro"], 0, source.table, source.assignment, source.pixels)
    with claim(Machine(threads=1)) as resources:
        _, state = start(recipe.members["micro"], None, resources, 0, pairing=patches.pairing)
    assert patches.pairing is None and state.auxiliary is None


@pytest.mark.parametrize("column", ["scanner", "tumour"])
def test_a_confounder_of_one_level_is_refused(column: str, recipe_path: Path, table: PatchTable) -> None:
    recipe = load_recipe(recipe_path, [f"each.auxiliary={{kind: domain_adversarial, confounder: {column}}}"])
    for word, message in (("X", f"two levels of {column}; here is only X"), ("", f"the {column} of every patch")):
        one = table.with_patches(replace(patch, **{column: word}) for patch in table)
        source = gather(recipe, one)
        with pytest.raises(DataError, match=message):
            fold_patches(recipe.members["micro"], 0, source.table, source.assignment, source.pixels)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tau": 0},
        {"weight": 0},
        {"mode": "paired"},
        {"pairs": "x"},
        {"margin": 2},
        {"variant": "margin", "negatives": "positive_scanner"},
        {"mode": "scangen"},
        {"width": 0},
        {"beta": 0.5},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="auxiliary"):
        ScannerContrast(**wrong)


@pytest.mark.parametrize("wrong", [{"weight": -1}, {"hidden": -1}, {"confounder": "case"}])
def test_settings_of_an_adversary_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="auxiliary"):
        DomainAdversarial(**wrong)
