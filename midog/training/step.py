"""One optimizer step: learning rate, gradients of the whole batch, update. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Callable

import torch

from midog.models.classifier import Classifier
from midog.models.predict import autocast
from midog.training import checkpoint
from midog.training.feed import Fed
from midog.training.losses import loss
from midog.training.machine import Resources
from midog.training.member import Training
from midog.training.memory import Memory
from midog.training.optimise import learning_rate, trained_parameters
from midog.training.selection import plateau_factor

Objective = Callable[[Fed], torch.Tensor]
"""The mean loss of a part of a batch."""


def set_learning_rate(state: checkpoint.State, training: Training, step: int, per_epoch: int) -> float:
    """Set and return the learning rate of `step`, counted from the start of training."""
    steps, warmup = training.epochs * per_epoch, round(training.warmup * per_epoch)
    factor = learning_rate(step, steps, warmup, falls=training.schedule == "cosine")
    if training.schedule == "plateau" and state.best is not None:
        factor *= plateau_factor(state.best.losses)
    for group in state.optimizer.param_groups:
        group["lr"] = training.lr * factor * group["pace"]
    return training.lr * factor


def step(
    training: Training,
    batch: Fed,
    classifier: Classifier,
    state: checkpoint.State,
    resources: Resources,
    memory: Memory,
    objective: Objective | None = None,
) -> torch.Tensor:
    """One optimizer step on a batch; its mean loss, a tensor: nothing waits for the device.

    `objective` stands in for the loss between logits and targets.

    Raises: MidogError when memory does not hold a single patch.
    """
    objective = objective or (lambda part: supervised(training, part, classifier, resources))
    while (total := gradients(batch, objective, state, resources, memory)) is None:
        state.optimizer.zero_grad(set_to_none=True)
        memory.shrink(len(batch))
    if training.clip:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(trained_parameters(state.module).values(), training.clip)
        if state.auxiliary is not None:  # apart, so that it does not hold the member's own steps back
            torch.nn.utils.clip_grad_norm_(trained_parameters(state.auxiliary).values(), training.clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if state.mean is not None:
        state.mean.update()
    return total


def supervised(training: Training, part: Fed, classifier: Classifier, resources: Resources) -> torch.Tensor:
    """The member's own loss between logits and targets, with the terms that its head adds."""
    return task_loss(training, part, classifier, resources, classifier.prepare(part.images))


def task_loss(
    training: Training, part: Fed, classifier: Classifier, resources: Resources, x: torch.Tensor
) -> torch.Tensor:
    """The same of a network's input x (n, 3, s, s), whose targets are those of `part`."""
    terms = dict[str, torch.Tensor]()
    with autocast(resources.device, resources.dtype):
        if classifier.head.has_losses:
            logits, terms = classifier.answer(x, part.targets)
        else:
            logits = classifier(x)
    return sum(terms.values(), loss(training.loss, logits, part.targets, part.weights, training.gamma))


def gradients(
    batch: Fed, objective: Objective, state: checkpoint.State, resources: Resources, memory: Memory
) -> torch.Tensor | None:
    """Add the gradients of a batch's mean loss, part by part; the loss, or None when the device is out of memory."""
    total = torch.zeros((), device=resources.device)
    try:
        for rows in memory.parts(len(batch)):
            part = batch.part(rows)
            # The parts' means add up to the batch's mean.
            value = objective(part) * (len(part) / len(batch))
            state.scaler.scale(value).backward()  # type: ignore[no-untyped-call]
            total += value.detach()
    except torch.OutOfMemoryError:
        return None  # what the failed pass holds is only freed once this frame is left
    return total
