"""What every head offers: it says what it is given, answers with a logit, and may bring loss terms of its own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Needs = Literal["pooled", "tokens"]


class HeadModule(nn.Module):
    """(n, …) of what it `needs` to (n,) float32 logits of *atypical*.

    `pooled` is (n, width), see `linear.pool_features`; `tokens` is (n, prefix + t, width), the global token first, see
    `linear.token_rows`.
    """

    needs: Needs = "pooled"
    has_losses = False
    """True where `answer` does more than answer."""
    wants_frozen = False
    """True where `answer` is to be given what the backbone says without its adapters."""

    def answer(self, given: Tensor, targets: Tensor, frozen: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the head's own loss terms by name, each a weighted mean over the batch to add to the task's.

        Args:
            given: what the head needs.
            targets: (n,) float, 0…1, the label or the share of votes.
            frozen: the same of the untuned backbone, without gradients, where the head `wants_frozen`.
        """
        return self(given), {}

    def vector(self, given: Tensor) -> Tensor:
        """(n, …) float32 features that the head reads its logit from: what it is given, unless it makes its own."""
        return given.float()

    def notes(self) -> dict[str, float]:
        """What an epoch's log line says of the head, forgotten as it is told."""
        return {}


def told_mean(name: str, values: list[Tensor]) -> dict[str, float]:
    """For `notes`: the mean of scalar tensors under `name`, or nothing where there are none. Empties the list."""
    if not values:
        return {}
    mean = float(torch.stack(values).mean())
    values.clear()
    return {name: mean}
