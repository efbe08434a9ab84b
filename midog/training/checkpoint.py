"""`last.safetensors`: all that must agree when training goes on, in one file that is whole or absent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from midog.errors import WeightsError
from midog.models.weights import TensorFile, write_tensors
from midog.training.optimise import RunningMean, changing_tensors, trained_parameters
from midog.training.selection import Best

FORMAT = "midog training checkpoint"


@dataclass(frozen=True)
class State:
    """The moving parts of a training: what `save` writes and `restore` fills in place.

    `auxiliary` is trained beside the module, by the same optimizer, and thrown away when it is over.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    mean: RunningMean | None
    scaler: GradScaler
    best: Best | None = None
    auxiliary: nn.Module | None = None

    def trained(self) -> dict[str, nn.Parameter]:
        """All parameters that the optimizer moves, by the names that the checkpoint gives them."""
        beside = trained_parameters(self.auxiliary) if self.auxiliary is not None else {}
        return trained_parameters(self.module) | {f"auxiliary.{name}": value for name, value in beside.items()}


@dataclass(frozen=True)
class Header:
    """What a checkpoint says about itself: epochs finished, seconds spent, and what made the fold."""

    epoch: int
    seconds: float
    identity: dict[str, Any]


def save(path: Path, state: State, header: Header) -> None:
    """Write weights, buffers, optimizer, running mean and epoch to one safetensors file, atomically."""
    tensors = {f"model.{name}": tensor for name, tensor in changing_tensors(state.module).items()}
    if state.auxiliary is not None:
        tensors.update({f"auxiliary.{name}": t for name, t in changing_tensors(state.auxiliary).items()})
    tensors.update(_optimizer_tensors(state))
    if state.mean is not None:
        tensors.update({f"mean.{name}": tensor for name, tensor in state.mean.mean.items()})
    if state.best is not None:
        tensors.update({f"best.{name}": tensor for name, tensor in state.best.tensors.items()})
    if state.scaler.is_enabled():
        scaler = state.scaler.state_dict()
        tensors["scaler"] = torch.tensor([scaler["scale"], scaler["_growth_tracker"]], dtype=torch.float64)
    about = {
        "format": FORMAT,
        "epoch": header.epoch,
        "seconds": header.seconds,
        "updates": state.mean.updates if state.mean is not None else 0,
        "inner_losses": state.best.losses if state.best is not None else [],
        "identity": header.identity,
    }
    write_tensors(path, tensors, about)


def _optimizer_tensors(state: State) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in state.trained().items():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value if isinstance(value, Tensor) else torch.tensor(float(value))
    return tensors


def read_header(path: Path) -> Header:
    """Epoch and identity of a checkpoint, without its tensors.

    Raises: WeightsError when it is damaged or not one of ours.
    """
    about = _open(path).about
    return Header(int(about["epoch"]), float(about["seconds"]), dict(about["identity"]))


def _open(path: Path) -> TensorFile:
    try:
        opened = TensorFile(path)
    except WeightsError as error:
        raise _damaged(path, error.problem) from None
    if opened.about.get("format") != FORMAT:
        raise _damaged(path, "it says nothing about a training")
    return opened


@torch.no_grad()
def restore(path: Path, state: State) -> None:
    """Fill `state` from a checkpoint of the same member.

    Raises: WeightsError when it is damaged, or holds other tensors than this member has.
    """
    opened = _open(path)
    tensors = {name: opened[name] for name in opened.names}
    _fill(path, "model.", tensors, changing_tensors(state.module))
    if state.auxiliary is not None:
        _fill(path, "auxiliary.", tensors, changing_tensors(state.auxiliary))
    if state.mean is not None:
        _fill(path, "mean.", tensors, state.mean.mean)
        state.mean.updates = int(opened.about["updates"])
    if state.best is not None:
        _fill(path, "best.", tensors, state.best.tensors)
        state.best.losses[:] = [float(value) for value in opened.about["inner_losses"]]
    if state.scaler.is_enabled() and "scaler" in tensors:
        scale, growth = tensors["scaler"].tolist()
        state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": scale, "_growth_tracker": int(growth)})
    for name, parameter in state.trained().items():
        _restore_optimizer(state.optimizer, parameter, tensors, name)


def _fill(path: Path, prefix: str, stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    names = {name.removeprefix(prefix) for name in stored if name.startswith(prefix)}
    problems = [f"missing: {name}" for name in sorted(wanted.keys() - names)]
    problems += [f"foreign: {name}" for name in sorted(names - wanted.keys())]
    problems += [
        f"{name}: {tuple(stored[prefix + name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(names & wanted.keys())
        if stored[prefix + name].shape != wanted[name].shape
    ]
    if problems:
        raise WeightsError(
            f"{path} is the checkpoint of another network", f"rm {path} and train the fold from its start", problems
        )
    for name, tensor in wanted.items():
        tensor.copy_(stored[prefix + name])


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, tensors: Mapping[str, Tensor], name: str
) -> None:
    state: dict[str, Tensor] = {}
    for key in ("step", "exp_avg", "exp_avg_sq"):
        stored = tensors.get(f"optimizer.{key}.{name}")
        if stored is None:
            continue
        # The moments take the parameter's memory format: the same loop order, so the same bits.
        like = torch.empty_like(parameter) if stored.shape == parameter.shape and key != "step" else None
        state[key] = like.copy_(stored) if like is not None else stored.to(parameter.device)
    if state:
        optimizer.state[parameter] = state


def _damaged(path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{path} cannot be continued: {reason}",
        f"rm {path} and repeat the command: this fold then starts from its first epoch",
    )
