"""The optimizer, its schedule, and the running mean of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that receive gradients, by name, in the module's order."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def changing_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What training can change: trained parameters and every buffer that the state dict keeps (references)."""
    trained = trained_parameters(module)
    buffers = dict(module.named_buffers())
    return {
        name: tensor.detach()
        for name, tensor in module.state_dict(keep_vars=True).items()
        if name in trained or name in buffers
    }


def build_optimizer(
    module: nn.Module,
    kind: str,
    lr: float,
    weight_decay: float,
    beside: nn.Module | None = None,
    pace: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW (`adamw`) or Adam (`adam`) on the trained parameters; biases, norms and scales (up to one dimension) are
    not decayed. What is trained `beside` the module has `pace` times its learning rate (see `set_learning_rate`)."""
    groups: list[dict[str, Any]] = []
    for part, own in ((module, 1.0), (beside, pace)):
        trained = list(trained_parameters(part).values()) if part is not None else []
        for decay, chosen in ((weight_decay, True), (0.0, False)):
            parameters = [parameter for parameter in trained if (parameter.ndim > 1) == chosen]
            groups.append({"params": parameters, "weight_decay": decay, "lr": lr * own, "pace": own})
    groups = [group for group in groups if group["params"]]
    # Fused exists on CPU and CUDA; other devices (MPS) take the plain one.
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    build = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
    return build(groups, lr=lr, fused=fused)


def learning_rate(step: int, steps: int, warmup_steps: int, falls: bool = True) -> float:
    """Factor on the learning rate at `step` (from 0) of `steps`: linear warm-up, then cosine towards 0 where it falls.

    The first step is never 0 and the last one never reaches 0, so no step is wasted.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if not falls:
        return 1.0
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


class RunningMean:
    """Exponential moving average of trained parameters and floating buffers; whole-number buffers are copied.

    The decay grows from 0.1 to `decay` as (1 + t) / (10 + t) over the updates t, so that short schedules are not held
    back by the starting weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.source = changing_tensors(module)
        self.mean = {name: tensor.clone() for name, tensor in self.source.items()}

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        floating = [name for name, tensor in self.source.items() if tensor.is_floating_point()]
        means = [self.mean[name] for name in floating]
        torch._foreach_lerp_(means, [self.source[name] for name in floating], 1 - decay)
        for name in self.source.keys() - set(floating):
            self.mean[name].copy_(self.source[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the mean and the module's own values; twice is as before."""
        for name, tensor in self.source.items():
            own = tensor.clone()
            tensor.copy_(self.mean[name])
            self.mean[name].copy_(own)
