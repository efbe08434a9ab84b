"""Training on attacked patches: what the network then sees, and what the attack leaves alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from midog.data.patches import PatchTable
from midog.errors import UsageError
from midog.models.classifier import Classifier
from midog.recipe import load_recipe
from midog.training.auxiliary import AdversarialLoss, Task, build_auxiliary, guided
from midog.training.auxiliary_settings import Adversarial
from midog.training.batches import epoch_batches
from midog.training.feed import Fed, feed
from midog.training.fold import start, train_epoch
from midog.training.machine import Machine, Resources, claim
from midog.training.memory import Memory
from midog.training.pairing import START, AttackStarts
from midog.training.patches import fold_patches
from midog.training.source import gather
from midog.training.step import supervised
from midog.variation import vary_recipe

FGSM, PGD = Adversarial(), Adversarial(epsilon=6 / 255, steps=4)
KINDS = {
    "conv": ["each.head=linear"],
    "conv, low_pass": ["each.harmonise=low_pass"],
    "vit": ["members.micro.backbone=test_vit", "members.micro.tune={kind: lora, rank: 2}"],
    "vit, joint": ["members.micro.backbone=test_vit", "members.micro.tune=lora", "each.head=joint"],
    "vit, frozen, macenko": ["members.micro.backbone=test_vit", "members.micro.tune=head", "each.harmonise=macenko"],
    "conv, concept, reinhard": ["each.head=concept", "each.harmonise=reinhard"],
}
CPU = torch.device("cpu")


@contextmanager
def opened(
    recipe_path: Path, table: PatchTable, sets: list[str], machine: Machine | None = None
) -> Iterator[tuple[Any, Any, Classifier, Any, Resources]]:
    """Member, patches, classifier (its head no longer zero), state and resources of fold 0."""
    recipe = load_recipe(recipe_path, ["each.auxiliary=adversarial", "each.training.soft_labels=true", *sets])
    source, member = gather(recipe, table), recipe.members["micro"]
    patches = fold_patches(member, 0, source.table, source.assignment, source.pixels)
    with claim(machine or Machine(threads=1)) as resources:
        classifier, state = start(member, None, resources, 0, pairing=patches.pairing)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in classifier.head.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        yield member, patches, classifier, state, resources


def a_batch(patches: Any, epoch: int = 0) -> Fed:
    order = torch.arange(8).numpy()
    fed = next(feed(epoch_batches(patches.samples, order, 8, (0, "micro", 0, epoch), 0, patches.pairing), CPU))
    return replace(fed, targets=torch.tensor([1.0, 0, 0.8, 0.2, 1, 0, 0.6, 0.4]))


def clean(part: Fed) -> Tensor:
    return part.images.permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("settings", [FGSM, PGD], ids=["fgsm", "pgd"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_on_lies_within_the_budget_and_is_harder(
    kind: str, settings: Adversarial, recipe_path: Path, table: PatchTable
) -> None:
    """Also: statistics of batch norms, modes, gradients and torch's generator are as if nothing had been attacked."""
    with opened(recipe_path, table, KINDS[kind]) as (member, patches, classifier, _, resources):
        task = Task(member.training, classifier, resources, a_batch(patches))
        before, modes = copy.deepcopy(classifier.state_dict()), [part.training for part in classifier.modules()]
        drawn = torch.get_rng_state()
        attacked = AdversarialLoss(settings).attacked(task)
        assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
        assert [part.training for part in classifier.modules()] == modes and classifier.training
        assert all(parameter.grad is None for parameter in classifier.parameters())
        assert torch.equal(torch.get_rng_state(), drawn) and not attacked.requires_grad
        pixels = clean(task.part)
        assert float((attacked - pixels).abs().max()) == pytest.approx(settings.epsilon, abs=1e-6)
        assert float(attacked.min()) >= 0 and float(attacked.max()) <= 1
        classifier.eval()
        with torch.no_grad():
            easy, hard = (
                binary_cross_entropy_with_logits(task.logit(x), task.part.targets, reduction="none")
                for x in (pixels, attacked)
            )
        assert float(hard.mean()) > float(easy.mean())
        # Macenko's percentiles are steep: a few long steps overshoot on some patches, though not on the whole.
        overshoots = "macenko" in kind and settings.steps > 1
        assert overshoots or bool((hard > easy).all())


def test_the_task_is_asked_on_both_batches(recipe_path: Path, table: PatchTable) -> None:
    """The loss is that of the clean batch and `weight` times that of the attacked one, with the head's own terms."""
    with opened(recipe_path, table, KINDS["vit, joint"]) as (member, patches, classifier, _, resources):
        part = a_batch(patches)
        task = Task(member.training, classifier, resources, part)
        alone = supervised(member.training, part, classifier, resources)
        attacked = task.loss(AdversarialLoss(FGSM).attacked(task))
        for weight in (0.5, 2.0):
            auxiliary = build_auxiliary(Adversarial(weight=weight), 1, 1)
            both = guided(member.training, classifier, auxiliary, 0.5, resources, part)
            torch.testing.assert_close(both, alone + weight * attacked)
        torch.testing.assert_close(task.loss(clean(part)), alone, msg="unattacked pixels are the batch itself")


def test_a_start_belongs_to_its_patch_however_the_batch_is_split(recipe_path: Path, table: PatchTable) -> None:
    with opened(recipe_path, table, KINDS["vit"]) as (member, patches, classifier, _, resources):
        assert isinstance(patches.pairing, AttackStarts)
        whole, again, later = (a_batch(patches, epoch) for epoch in (0, 0, 1))
        assert torch.equal(whole.extra[START], again.extra[START])
        assert not torch.equal(whole.extra[START], later.extra[START])
        starts = whole.extra[START].float()
        assert starts.abs().max() == 127 and abs(float(starts.mean())) < 1
        assert not torch.equal(whole.extra[START][0], whole.extra[START][1])
        attack = AdversarialLoss(PGD)
        at_once, *parts = (
            attack.attacked(Task(member.training, classifier, resources, whole.part(rows)))
            for rows in (slice(0, 8), slice(0, 3), slice(3, 8))
        )
        # Rounding may turn a sign where a gradient is next to nothing.
        assert float((at_once != torch.cat(parts)).float().mean()) < 1e-3


@pytest.mark.parametrize("part", [None, 3])
def test_it_is_deterministic_also_in_parts(part: int | None, recipe_path: Path, table: PatchTable) -> None:
    def weights() -> list[Tensor]:
        with opened(recipe_path, table, KINDS["conv"]) as (member, patches, classifier, state, resources):
            train_epoch(member, 0, 0, patches, classifier, state, resources, Memory(classifier, part), steps=2)
            return [value.clone() for value in classifier.state_dict().values()]

    assert all(torch.equal(one, other) for one, other in zip(weights(), weights(), strict=True))


def test_it_trains_in_half_precision(recipe_path: Path, table: PatchTable) -> None:
    for kind in ("conv, low_pass", "vit, joint"):
        machine = Machine(threads=1, precision="bf16")
        with opened(recipe_path, table, KINDS[kind], machine) as (member, patches, classifier, state, resources):
            assert resources.dtype is torch.bfloat16
            line = train_epoch(member, 0, 0, patches, classifier, state, resources, steps=2)
            assert 0 < line["loss"] < 20


def test_in_float16_the_attack_itself_stays_in_float32(recipe_path: Path, table: PatchTable) -> None:
    with opened(recipe_path, table, KINDS["vit"]) as (member, patches, classifier, _, resources):
        part = a_batch(patches)
        logits = {
            dtype: Task(member.training, classifier, replace(resources, dtype=dtype), part).logit(clean(part))
            for dtype in (torch.float32, torch.float16, torch.bfloat16)
        }
        assert torch.equal(logits[torch.float16], logits[torch.float32])
        assert not torch.equal(logits[torch.bfloat16], logits[torch.float32])


@pytest.mark.parametrize(
    "wrong",
    [{"epsilon": 0}, {"epsilon": 4}, {"epsilon": float("nan")}, {"steps": 0}, {"weight": 0}, {"weight": float("inf")}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"auxiliary.{next(iter(wrong))} is "):
        Adversarial(**wrong)


def test_both_defences_vary() -> None:
    varied = vary_recipe("smoke", ["auxiliary=off,adversarial", "harmonise=off,low_pass"], [0], [])
    assert list(varied.recipes) == [
        f"auxiliary={auxiliary},harmonise={harmonise},seed=0"
        for auxiliary in ("off", "adversarial")
        for harmonise in ("off", "low_pass")
    ]
    last = next(reversed(varied.recipes.values())).plain["members"]["vit"]
    assert last["auxiliary"] == {"kind": "adversarial", "epsilon": 4 / 255, "steps": 1, "weight": 1.0}
    assert last["harmonise"] == {"kind": "low_pass", "radius": 50, "of": 224}
