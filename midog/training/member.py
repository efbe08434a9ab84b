"""A member of a recipe, fully resolved, and how it is trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from augment.policies import Augment
from midog.errors import MidogError, UsageError, unknown
from midog.models.backbones import find_backbone
from midog.models.harmonise import Harmonise
from midog.models.heads.kinds import Head
from midog.models.network import Network
from midog.models.preprocess import Image
from midog.models.tuning import Tune
from midog.settings import plain
from midog.training.auxiliary_settings import AuxiliarySettings
from midog.training.losses import LOSSES
from midog.training.sampling import SAMPLERS
from midog.training.start_settings import Start

SCHEDULES = ("cosine", "constant", "plateau")
SELECTIONS = ("last", "inner")
OPTIMIZERS = ("adamw", "adam")
LEAST = {"epochs": 1, "batch": 1, "weight_decay": 0, "warmup": 0, "gamma": 0, "ema": 0, "clip": 0, "patience": 0}


@dataclass(frozen=True)
class Training:
    """How a member is trained. The paper gives no values: these are our choice.

    Attributes:
        epochs: length of the schedule.
        batch: effective batch; how it is split over memory is the machine's affair.
        optimizer: adamw; or adam, whose weight decay is part of the gradient.
        lr: peak learning rate.
        weight_decay: of weights; biases, norms and scales are not decayed.
        warmup: epochs of linear warm-up before the cosine.
        loss: bce, focal or domain_focal.
        gamma: focusing exponent of the focal losses.
        sampler: natural, balanced (by class) or domain (by class and domain).
        soft_labels: train on the share of atypical votes where votes exist.
        schedule: cosine to 0; constant; or plateau, halved when the inner loss no longer falls (needs select: inner).
        select: last, the schedule's last epoch; or inner, the epoch with the lowest loss on a tenth of the fold's
            *training* cases, which are then not trained on.
        patience: with select: inner, stop after so many epochs without a lower loss; 0 never stops early.
        ema: decay of the running mean of weights and buffers that becomes the fold model; 0 is off.
        clip: largest gradient norm; 0 is off.
    """

    epochs: int = 30
    batch: int = 32
    lr: float = 1e-4
    weight_decay: float = 1e-2
    warmup: float = 1.0
    loss: str = "bce"
    gamma: float = 2.0
    sampler: str = "balanced"
    soft_labels: bool = False
    schedule: str = "cosine"
    select: str = "last"
    patience: int = 0
    ema: float = 0.0
    clip: float = 1.0
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("training.loss", self.loss, LOSSES)
        if self.sampler not in SAMPLERS:
            raise unknown("training.sampler", self.sampler, SAMPLERS)
        if self.schedule not in SCHEDULES:
            raise unknown("training.schedule", self.schedule, SCHEDULES)
        if self.select not in SELECTIONS:
            raise unknown("training.select", self.select, SELECTIONS)
        if self.optimizer not in OPTIMIZERS:
            raise unknown("training.optimizer", self.optimizer, OPTIMIZERS)
        if self.select == "last" and (self.schedule == "plateau" or self.patience):
            raise UsageError(
                "training.schedule plateau and training.patience look at the inner loss", "training: {select: inner}"
            )
        for name, bound in LEAST.items():
            if not getattr(self, name) >= bound:
                raise UsageError(f"training.{name} is {getattr(self, name)}", f"at least {bound}")
        if not 0 < self.lr < float("inf"):
            raise UsageError(f"training.lr is {self.lr}", "a number above 0, such as 1e-4")
        if self.ema >= 1:
            raise UsageError(f"training.ema is {self.ema}", "below 1: 0.999 averages over about a thousand steps")
        if self.warmup >= self.epochs:
            raise UsageError(
                f"training.warmup is {self.warmup:g} of {self.epochs} epochs", "less than the whole schedule"
            )


@dataclass(frozen=True)
class Member:
    """One entry of a recipe, every default spelled out. `seed` is the recipe's; what is None is off."""

    name: str
    backbone: str | dict[str, Any]
    pretrained: str
    image: Image
    augment: Augment
    tune: Tune
    head: Head
    training: Training
    seed: int = 0
    start: Start | None = None
    auxiliary: AuxiliarySettings | None = None
    harmonise: Harmonise | None = None

    def settings(self) -> dict[str, Any]:
        """Everything but the name and the seed, as plain JSON: what the resolved recipe says of the member."""
        content = plain(asdict(self))
        return {key: value for key, value in content.items() if key not in ("name", "seed")}


def network_of(member: Member) -> Network:
    """The network that the member trains. Raises: UsageError for an unknown backbone."""
    record = find_backbone(member.backbone)
    return Network(
        record, member.pretrained, member.image, member.tune, member.head, member.seed, harmonise=member.harmonise
    )


def check_tuning(members: Iterable[Member]) -> None:
    """Build each member's network without contents and tune it: what does not fit shows in a second, not after hours.

    Raises: UsageError naming every member whose tuning or head does not fit its backbone.
    """
    import torch

    from midog.models.build import empty_backbone
    from midog.models.tuning import apply_tuning

    problems: dict[str, str] = {}
    for member in members:
        network, part = network_of(member), "tune"
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                backbone, part = empty_backbone(network.backbone), "head"
                network.build_head(backbone)
                part = "tune"
                apply_tuning(backbone, network.tune, network.backbone)
        except MidogError as error:
            problems[f"members.{member.name}.{part}: {error.problem}"] = error.fix
    if problems:
        fix = next((fix for fix in problems.values() if fix), "midog recipes show paper")
        raise UsageError("tuning that does not fit its backbone; nothing was trained", fix, list(problems))
