"""What is audited: a bundle at an operating point, or the fold models of a run or blend, each on what it never saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ensemble.blend import OperatingPoint, combine, confidence, decide
from midog.audit.patches import Change, Patches, Shown
from midog.errors import DataError
from midog.robustness.features import Features

if TYPE_CHECKING:
    from midog.bundle import Bundle
    from midog.models.classifier import Classifier
    from midog.models.inference import Inference
    from midog.models.network import Network
    from midog.models.weights import TensorFile

COLUMNS = ("patch_id", "label", "case", "domain", "tumour", "scanner", "laboratory")
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Member:
    """A member's fold models: fold number → file. `left_out` maps a patch id to the fold whose model never saw it; it
    is empty in a bundle, where nobody knows. `backbone` is the bundle's file, None where there is none or in a run."""

    name: str
    network: Network
    files: dict[int, Path]
    left_out: Mapping[str, int]
    backbone: Path | None
    bundled: bool

    @property
    def first(self) -> int:
        return min(self.files)


@dataclass(frozen=True, eq=False)
class Answers:
    """z (n,) blended logits, p (n,) confidence, called (n,) bool True = atypical; u (n,) calibrated logits."""

    z: Floats
    p: Floats
    called: NDArray[np.bool_]
    u: Floats


@dataclass(frozen=True, eq=False)
class Subject:
    """What is audited. `kind` is bundle, run or blend; `thresholds` is that part of blend.json, where there is one, and
    `rule` how its thresholds were fitted, `pooled` or `across`.

    `members` are those of the operating point, in its order, `everyone` all; `identity` hashes every byte that answers;
    `training` holds the pixel hashes of its training patches; `pretrained` is where backbones' weights lie.
    """

    name: str
    kind: str
    point: OperatingPoint
    points: Mapping[str, OperatingPoint]
    members: tuple[Member, ...]
    everyone: tuple[Member, ...]
    identity: str
    training: frozenset[str]
    thresholds: Mapping[str, Any]
    rule: str
    bundle: Bundle | None = None
    pretrained: Path | None = None
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)  # what several parts ask for

    def seen(self, patches: Patches) -> NDArray[np.bool_]:
        """(n,) bool: trained on by a model that answers for it."""
        known = np.array([value in self.training for value in patches.pixels.hashes], dtype=np.bool_)
        alone = np.array([all(name in m.left_out for m in self.members) for name in patches.ids], dtype=np.bool_)
        return known & ~alone

    def answer(self, patches: Patches, change: Change | None = None) -> Answers:
        """The operating point's answers; with `change` to changed patches."""
        key = ("answer", patches.identity)
        if change is None and key in self.kept:
            known: Answers = self.kept[key]
            return known
        if self.bundle is not None:
            z = self.bundle.predict(Shown(patches, None, change), mpp=None, ids=patches.ids).logit
        else:
            each = [self._out_of_fold(m, patches, change, self.point.views) for m in self.members]
            z = combine(self.point, np.stack(each, axis=1))
        if not np.isfinite(z).all():
            raise DataError(f"{int((~np.isfinite(z)).sum())} of {len(z)} logits are not finite", "train it again")
        p = confidence(self.point, z)
        found = Answers(z, p, decide(self.point, p), (z - self.point.shift) / self.point.temperature)
        if change is None:
            self.kept[key] = found
        return found

    def _out_of_fold(self, member: Member, patches: Patches, change: Change | None, views: str) -> Floats:
        """(n,) logits, the mean over a set of views: of the fold model that left the patch out; of all where every one
        of them did."""
        from augment.views import VIEW_SETS
        from midog.models.predict import predict_logits

        seen, fold = VIEW_SETS[views], fold_of(member, patches)
        total, times = np.zeros(len(patches)), np.zeros(len(patches))
        for k, file in member.files.items():
            rows = np.flatnonzero((fold == k) | (fold == -1))
            if len(rows):
                model = self._inference(member).switch(file)
                total[rows] += predict_logits(model, Shown(patches, rows, change), seen).mean(axis=1)
                times[rows] += 1
        if not times.all():
            lacking = sorted({int(k) for k in fold[times == 0]})
            raise DataError(f"{member.name} has no model of fold {', '.join(map(str, lacking))}", "finish its training")
        return np.asarray(total / times)

    def _inference(self, member: Member) -> Inference:
        """Kept between calls, a network a member."""
        key = ("inference", member.name)
        if key not in self.kept:
            self.kept[key] = self._build(member)
        found: Inference = self.kept[key]
        return found

    def _build(self, member: Member) -> Inference:
        from midog.models.classifier import pretrained_state
        from midog.models.inference import Inference
        from midog.models.predict import pick_device

        base = member.backbone if member.bundled else pretrained_state(member.network, self.pretrained)
        return Inference(member.network, base, pick_device())

    def single(self, member: Member) -> Classifier:
        """The member's first fold model, in a network of its own."""
        return self._build(member).switch(member.files[member.first])

    def unseen(self, member: Member, patches: Patches) -> NDArray[np.bool_]:
        """(n,) bool: patches that the member's first fold model may answer for; all, where nobody knows (a bundle)."""
        fold = fold_of(member, patches)
        return np.asarray((fold == member.first) | (fold == -1), dtype=np.bool_)

    def alone(self, member: Member, patches: Patches) -> Floats:
        """(n,) logits of one member, one fold model and one view of it: its first, or the one that left the patch out
        where that is known."""
        from midog.models.predict import predict_logits

        if member.bundled:
            return np.asarray(predict_logits(self.single(member), Shown(patches))[:, 0])
        return self._out_of_fold(member, patches, None, "none")

    def threshold(self, member: Member) -> float:
        """Logit from which one fold model with one view calls atypical: its own operating point's, else the audited."""
        point = self.points.get(f"only:{member.name}/1", self.point)
        share = min(max(point.threshold, 1e-12), 1 - 1e-12)
        return float(point.shift + point.temperature * np.log(share / (1 - share)))

    def frozen(self, patches: Patches) -> NDArray[np.float32]:
        """(n, width) features of the first member's backbone as it was before training.

        Raises: WeightsError where neither the bundle nor the pretrained weights hold it.
        """
        from midog.models.build import empty_backbone
        from midog.models.classifier import Classifier, pretrained_state
        from midog.models.features import pooled_features
        from midog.models.heads.linear import Linear

        key = ("frozen", patches.identity)
        if key not in self.kept:
            network = self.members[0].network
            model = Classifier(replace(network, head=Linear()), empty_backbone(network.backbone))
            wanted = model.backbone.state_dict()
            stored = _stored(self.members[0], wanted)
            state = {name: stored[name] for name in wanted} if stored else pretrained_state(network, self.pretrained)
            model.backbone.load_state_dict(state)
            self.kept[key] = pooled_features(model, Shown(patches), label="frozen")
        return np.asarray(self.kept[key])

    def start(self) -> str:
        """The weights that `frozen` reads: the file's hash, the seed that draws them, or "absent"; "" where the bundle
        holds them."""
        from midog.errors import WeightsError
        from midog.models.build import empty_backbone
        from midog.training.identity import pretrained_identity

        if "start" not in self.kept:
            member = self.members[0]
            wanted = empty_backbone(member.network.backbone).state_dict() if member.backbone else {}
            try:
                own = _stored(member, wanted) is not None
                self.kept["start"] = "" if own else pretrained_identity(member.network, self.pretrained)
            except WeightsError:
                self.kept["start"] = "absent"
        return str(self.kept["start"])

    def adapted(self, patches: Patches, change: Change | None = None) -> NDArray[np.float32]:
        """(n, width) features of the first member's first fold model; ask for `unseen` patches. With `change` of
        changed patches."""
        from midog.models.features import pooled_features

        key = ("adapted", patches.identity)
        if change is None and key in self.kept:
            return np.asarray(self.kept[key])
        found = pooled_features(self.single(self.members[0]), Shown(patches, None, change), label="adapted")
        if change is None:
            self.kept[key] = found
        return found

    def features(self, patches: Patches) -> tuple[Features, str]:
        """Features of the first fold model, and of its frozen backbone where that is at hand, else why not."""
        from midog.errors import WeightsError

        rows = self.unseen(self.members[0], patches)
        if not rows.any():
            raise DataError(f"no patch that fold model {self.members[0].first} left out", "more patches: --limit 0")
        chosen = patches.take(rows)
        arrays, problem = {"adapted": self.adapted(chosen)}, ""
        try:
            arrays = {"frozen": self.frozen(patches)[rows], **arrays}
        except WeightsError as error:
            problem = error.problem
        return Features(arrays, {name: chosen.column(name) for name in COLUMNS}), problem


def fold_of(member: Member, patches: Patches) -> NDArray[np.int64]:
    """(n,) the fold whose model left the patch out; -1: none was trained on it, or nobody knows."""
    return np.array([member.left_out.get(name, -1) for name in patches.ids], dtype=np.int64)


def _stored(member: Member, wanted: Mapping[str, Any]) -> TensorFile | None:
    """The bundle's file of the backbone where that holds all of `wanted`; fold models may have replaced some."""
    from midog.models.weights import TensorFile

    if member.backbone is None:
        return None
    file = TensorFile(member.backbone)
    return file if all(name in file for name in wanted) else None
