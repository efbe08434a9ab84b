"""One member, one fold: the loop reads top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.amp.grad_scaler import GradScaler

from augment.views import VIEW_NAMES
from midog.data.folds import Assignment
from midog.data.patches import PatchTable
from midog.errors import MidogError, WeightsError
from midog.files import sha256_file, sha256_json, write_json
from midog.models.classifier import Begin, Classifier, Measure, build_classifier, round_trained, save_fold
from midog.models.harmonise import CombatFeatures
from midog.models.heads.linear import feature_width
from midog.models.predict import predict_logits
from midog.progress import steps as progress_bar
from midog.provenance import provenance
from midog.run import Oof, write_oof
from midog.status import CHECKPOINTS, LAST, MAPS, START_LOG, read_log
from midog.training import checkpoint
from midog.training.auxiliary import Auxiliary, build_auxiliary, guided
from midog.training.batches import Images, epoch_batches, steps_per_epoch
from midog.training.feed import Fed, feed
from midog.training.folder import cut_log, hold, sweep, write_log_line
from midog.training.head_maps import head_maps
from midog.training.identity import check_identity, fold_identity
from midog.training.losses import bce
from midog.training.machine import Machine, Resources, claim
from midog.training.member import Member, network_of
from midog.training.memory import Memory
from midog.training.optimise import RunningMean, build_optimizer
from midog.training.pairing import FoldPairing
from midog.training.patches import FoldPatches, fold_patches, sampling
from midog.training.prototypes import prototypes_of
from midog.training.refit import harmonise_head
from midog.training.sampling import draw_epoch
from midog.training.seeds import generator_of, seed_of
from midog.training.selection import Best
from midog.training.start import tune_backbone
from midog.training.step import set_learning_rate, step
from midog.training.teacher import load_teacher, require_teacher


def train_fold(
    member: Member,
    k: int,
    table: PatchTable,
    assignment: Assignment,
    images: Images,
    folder: Path,
    pretrained: Path | None = None,
    machine: Machine | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Train `member` without fold `k` and leave model.safetensors, oof.csv, log.jsonl and done.json in `folder`.

    Killed at any moment, the same call goes on after the last whole epoch (of its start or its training); on CPU with
    the same threads it ends in the same bytes. Called on a fold that is done, it does nothing.

    Args:
        table: training patches (no `test` rows); `assignment` and `images` belong to it row by row.
        images: (n, 128, 128, 3) uint8, read by index arrays (`midog.data.pixels.Pixels`).
        pretrained: folder or file of pretrained weights, where the member starts from its record's.
        machine: device, precision, threads.
        say: gets a line when something happens that the user should know, such as a batch that had to be split.

    Raises: Busy when another process trains this fold; UsageError when the folder was made by something else, or when
        the model that it starts from as its teacher is not trained; LeakError when that is of another fold;
        WeightsError when the checkpoint is damaged; MidogError when the loss is no longer finite.
    """
    teacher = require_teacher(member, assignment.names[k], folder)
    identity = fold_identity(member, k, table, assignment, images, pretrained, teacher)
    with hold(folder), claim(machine or Machine()) as resources:
        check_identity(folder, identity, f"fold {assignment.names[k]} of {member.name}")
        if not (folder / "done.json").is_file():
            sweep(folder)
            patches = fold_patches(member, k, table, assignment, images)
            _train(member, k, patches, folder, identity, pretrained, machine or Machine(), resources, say)
        for name in CHECKPOINTS:
            (folder / name).unlink(missing_ok=True)
        (folder / "failed.json").unlink(missing_ok=True)


def _train(
    member: Member,
    k: int,
    patches: FoldPatches,
    folder: Path,
    identity: dict[str, Any],
    pretrained: Path | None,
    machine: Machine,
    resources: Resources,
    say: Callable[[str], None],
) -> None:
    training, last = member.training, folder / LAST
    begin: Begin | None = None
    if member.start is not None:
        begin = partial(
            tune_backbone,
            member=member,
            k=k,
            patches=patches,
            resources=resources,
            machine=machine,
            teacher=partial(load_teacher, member, folder, identity, pretrained, resources.device),
            folder=folder,
            identity=identity,
            say=say,
        )
    # A checkpoint holds the prototypes that training began with.
    measure = None if last.is_file() else prototypes_of(member, k, patches, resources)
    classifier, state = start(member, pretrained, resources, k, begin, patches.pairing, measure)
    what = f"{member.name} fold {k}"
    memory = Memory(classifier, machine.part, machine.checkpointing, lambda line: say(f"{what}: {line}"))
    if machine.compile:
        classifier.compile()  # type: ignore[no-untyped-call]
    epoch, seconds = 0, sum(float(line["seconds"]) for line in read_log(folder, START_LOG))
    if last.is_file():
        header = checkpoint.read_header(last)
        checkpoint.restore(last, state)
        epoch, seconds = header.epoch, header.seconds
    cut_log(folder, epoch)
    total = training.epochs * steps_per_epoch(len(patches.labels), training.batch)
    with progress_bar(what, total) as advance:
        for _ in range(epoch * total // training.epochs):
            advance("")
        while epoch < training.epochs and not (state.best and state.best.stop(training.patience)):
            line = train_epoch(member, k, epoch, patches, classifier, state, resources, memory, advance)
            epoch, seconds = epoch + 1, seconds + line["seconds"]
            if state.best is not None:
                line["inner_loss"] = judge(patches, classifier, state, resources)
            # The log first: a log that is ahead of the checkpoint is cut, one that lags behind could not be mended.
            write_log_line(folder, {"epoch": epoch, **line})
            checkpoint.save(last, state, checkpoint.Header(epoch, seconds, identity))
    if state.best is not None:
        state.best.apply(classifier)
    elif state.mean is not None:
        state.mean.swap()
    chosen = state.best.epoch + 1 if state.best is not None else epoch
    finish(member, k, patches, classifier, folder, identity, resources, seconds, chosen)


def start(
    member: Member,
    pretrained: Path | None,
    resources: Resources,
    k: int,
    begin: Begin | None = None,
    pairing: FoldPairing | None = None,
    measure: Measure | None = None,
) -> tuple[Classifier, checkpoint.State]:
    """The member's network before its first step, with a fresh optimizer; `begin` carries out the member's start, and
    `measure` makes its head's prototypes. `pairing` is the fold's, where the member has an auxiliary loss."""
    torch.manual_seed(seed_of(member.seed, member.name, k, "start"))
    classifier = build_classifier(network_of(member), pretrained, begin, measure)
    classifier = classifier.to(resources.device)
    training = member.training
    auxiliary, pace = None, 1.0
    if member.auxiliary is not None:
        assert pairing is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(member.seed, member.name, k, "auxiliary"))
            width = feature_width(classifier.backbone, classifier.network.backbone.pooling)
            auxiliary = build_auxiliary(member.auxiliary, width, len(pairing.levels)).to(resources.device)
        pace = auxiliary.pace
    optimizer = build_optimizer(classifier, training.optimizer, training.lr, training.weight_decay, auxiliary, pace)
    mean = RunningMean(classifier, training.ema) if training.ema else None
    scaler = GradScaler(resources.device.type, enabled=resources.dtype is torch.float16)
    best = Best(classifier) if training.select == "inner" else None
    return classifier, checkpoint.State(classifier, optimizer, mean, scaler, best, auxiliary)


def train_epoch(
    member: Member,
    k: int,
    epoch: int,
    patches: FoldPatches,
    classifier: Classifier,
    state: checkpoint.State,
    resources: Resources,
    memory: Memory | None = None,
    advance: Callable[[str], None] = lambda note: None,
    steps: int | None = None,
) -> dict[str, Any]:
    """One epoch (counted from 0), or its first `steps` steps; returns loss, last lr, seconds, the share of them spent
    waiting for batches, the number of steps, and what the head and the auxiliary loss note.

    Nothing in it waits for a GPU before the epoch is over.

    Raises: MidogError when the loss is not finite.
    """
    training, key = member.training, (member.seed, member.name, k, epoch)
    began = time.perf_counter()
    torch.manual_seed(seed_of(*key, "torch"))
    n = len(patches.labels)
    order = draw_epoch(*sampling(member, patches), n, generator_of(*key, "order"))
    per_epoch = steps_per_epoch(n, training.batch)
    order = order[: (steps or per_epoch) * training.batch]
    classifier.train()
    total = torch.zeros((), device=resources.device)
    memory = memory or Memory(classifier)
    waited, lr, at = 0.0, 0.0, 0
    batches = epoch_batches(patches.samples, order, training.batch, key, resources.workers, patches.pairing)
    for at, (batch, seconds) in enumerate(_timed(feed(batches, resources.device))):
        lr = set_learning_rate(state, training, epoch * per_epoch + at, per_epoch)
        objective = None
        if isinstance(state.auxiliary, Auxiliary):
            progress = (epoch * per_epoch + at) / (training.epochs * per_epoch)
            objective = partial(guided, training, classifier, state.auxiliary, progress, resources)
        total += step(training, batch, classifier, state, resources, memory, objective)
        waited += seconds
        advance(f"epoch {epoch + 1}/{training.epochs}")
    taken = at + 1
    mean_loss = float(total) / taken
    if not math.isfinite(mean_loss):
        raise MidogError(
            f"{member.name}, fold {k}: the loss is no longer a finite number in epoch {epoch + 1}",
            f"try a lower learning rate: --set members.{member.name}.training.lr={training.lr / 4:g}",
        )
    seconds = time.perf_counter() - began
    return {
        "loss": mean_loss,
        "lr": lr,
        "seconds": seconds,
        "waiting": waited / seconds,
        "steps": taken,
        **classifier.head.notes(),
        **(state.auxiliary.notes() if isinstance(state.auxiliary, Auxiliary) else {}),
    }


def _timed(batches: Iterator[Fed]) -> Iterator[tuple[Fed, float]]:
    """Each batch with the seconds it was waited for."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - began


def judge(patches: FoldPatches, classifier: Classifier, state: checkpoint.State, resources: Resources) -> float:
    """Loss on the inner cases of what would be the fold model now; the best so far is kept in `state`."""
    assert patches.inner is not None and state.best is not None
    if state.mean is not None:
        state.mean.swap()
    logits = predict_logits(classifier, patches.inner.images, VIEW_NAMES[:1], resources.device)[:, 0]
    # The mean over classes: inner cases are few, and their balance is chance.
    losses = bce(torch.from_numpy(logits), torch.from_numpy(patches.inner.targets).double())
    value = float(np.mean([losses[patches.inner.targets == label].mean() for label in (0, 1)]))
    state.best.add(value, classifier)
    if state.mean is not None:
        state.mean.swap()
    return value


def score(patches: FoldPatches, classifier: Classifier, device: torch.device) -> Oof:
    """Logits of the left-out patches in every view.

    Raises: WeightsError when one is not finite.
    """
    classifier.eval()
    logits = predict_logits(classifier, patches.left_out, VIEW_NAMES, device)
    if not np.isfinite(logits).all():
        bad = [patches.left_out_ids[at] for at in np.flatnonzero(~np.isfinite(logits).all(axis=1))]
        raise WeightsError("the trained model gives logits that are not finite", "try a lower learning rate", bad)
    return Oof(patches.left_out_ids, patches.left_out_folds, np.asarray(logits, dtype=np.float64))


def finish(
    member: Member,
    k: int,
    patches: FoldPatches,
    classifier: Classifier,
    folder: Path,
    identity: dict[str, Any],
    resources: Resources,
    seconds: float,
    chosen: int,
) -> None:
    """Write the fold model, its OOF logits and, last of all, done.json, which says that both are whole.

    `seconds`: what start and training took; done.json's are these and what happens here.
    """
    began = time.perf_counter()
    if isinstance(member.harmonise, CombatFeatures):
        harmonise_head(classifier, patches, member.training.sampler != "natural", resources)
    round_trained(classifier)
    network = classifier.network.to_dict()
    model = folder / "model.safetensors"
    save_fold(classifier, model, {"member": member.name, "fold": k, "identity": sha256_json(identity)})
    write_oof(folder / "oof.csv", score(patches, classifier, resources.device))
    if (maps := head_maps(classifier, patches)) is not None:
        write_json(folder / MAPS, maps)
    content = {
        "member": member.name,
        "fold": k,
        "identity_sha256": sha256_json(identity),
        "identity": identity,
        "model_sha256": sha256_file(model),
        "oof_sha256": sha256_file(folder / "oof.csv"),
        "network": network,
        "epoch": chosen,
        "training_patches": len(patches.labels),
        "seconds": seconds + time.perf_counter() - began,
        "seed": member.seed,
        "threads": resources.threads,
        "device": resources.device_name,
        "precision": str(resources.dtype).removeprefix("torch."),
        **provenance(),
    }
    write_json(folder / "done.json", content)
