"""The schedule, the decay groups and the running mean."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from midog.training.optimise import RunningMean, build_optimizer, learning_rate


def test_the_schedule_warms_up_then_falls_as_a_cosine() -> None:
    factors = [learning_rate(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[:11] == sorted(factors[:11])
    assert factors[10] == 1
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.001


def test_without_warm_up_the_first_step_is_the_largest() -> None:
    assert learning_rate(0, 1, 0) == 1


def test_biases_and_norms_are_not_decayed_and_frozen_weights_not_touched() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    network[2].requires_grad_(False)
    groups = build_optimizer(network, "adamw", 1e-3, 0.1).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.1), (3, 0.0)]


def test_what_is_trained_beside_has_its_own_pace() -> None:
    groups = build_optimizer(nn.Linear(3, 1), "adamw", 1e-3, 0.1, nn.Linear(3, 2), 10.0).param_groups
    assert [(group["lr"], group["pace"], group["weight_decay"]) for group in groups] == [
        (1e-3, 1.0, 0.1), (1e-3, 1.0, 0.0), (1e-2, 10.0, 0.1), (1e-2, 10.0, 0.0)
    ]  # fmt: skip


def test_the_running_mean_follows_its_closed_form_buffers_too() -> None:
    network = nn.BatchNorm1d(2)
    mean = RunningMean(network, 0.999)
    expected = 0.0
    for update in range(5):
        with torch.no_grad():
            network.bias.fill_(update + 1)
            network.running_mean.fill_(update + 1)
            network.num_batches_tracked.fill_(update + 1)
        mean.update()
        decay = (1 + update) / (10 + update)
        expected = decay * expected + (1 - decay) * (update + 1)
    assert network.bias[0].item() == 5
    mean.swap()
    assert network.bias[0].item() == pytest.approx(expected, rel=1e-6)
    assert network.running_mean[0].item() == pytest.approx(expected, rel=1e-6)
    assert network.num_batches_tracked.item() == 5
    mean.swap()
    assert network.bias[0].item() == 5


def test_adam_decays_in_the_gradient_and_adamw_beside_it() -> None:
    """After one step with a zero gradient: AdamW shrinks the weight by lr * decay, Adam moves it by lr."""
    moved = {}
    for kind in ("adamw", "adam"):
        network = nn.Linear(2, 2)
        nn.init.ones_(network.weight)
        network.weight.grad, network.bias.grad = torch.zeros(2, 2), torch.zeros(2)
        build_optimizer(network, kind, 0.01, 0.5).step()
        moved[kind] = 1 - network.weight[0, 0].item()
    assert moved["adamw"] == pytest.approx(0.01 * 0.5, rel=1e-3)
    assert moved["adam"] == pytest.approx(0.01, rel=1e-3)
