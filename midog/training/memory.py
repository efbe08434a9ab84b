"""How much of a batch goes through the network at once: as much as the device's memory holds, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch

from midog.errors import MidogError
from midog.models.classifier import Classifier

SMALL = 4
"""Patches at once below which recomputing activations costs less than more, smaller parts (our choice)."""


class Memory:
    """Splits batches for one classifier. Gradients of the parts add up to the batch's, so the effective batch stays.

    Batch norms in training see the statistics of a part. Out of memory, `shrink` halves the part down to 4 patches,
    then keeps activations no longer but computes them again in the backward pass, with the whole batch, and halves
    from there down to one patch.
    """

    def __init__(
        self,
        classifier: Classifier,
        part: int | None = None,
        checkpointing: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.classifier, self.part, self.say = classifier, part, say
        self.checkpointing = False
        if checkpointing:
            self._checkpoint()

    def parts(self, size: int) -> Iterator[slice]:
        """Slices of a batch of `size`, as even as can be."""
        count = -(-size // min(self.part or size, size))
        bounds = [size * at // count for at in range(count + 1)]
        return (slice(start, stop) for start, stop in pairwise(bounds))

    def shrink(self, size: int) -> None:
        """Need less memory for a batch of `size` from now on.

        Raises: MidogError when nothing is left to try.
        """
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        part = min(self.part or size, size)
        if part > SMALL or (self.checkpointing and part > 1):
            self.part = -(-part // 2)
            how = f"{self.part} patches at once"
        elif not self.checkpointing and hasattr(self.classifier.backbone, "set_grad_checkpointing"):
            self._checkpoint()
            self.part, how = None, "gradient checkpointing"
        else:
            name = self.classifier.network.backbone.name
            raise MidogError(
                f"out of memory: {name} does not fit this device even one patch at a time",
                "close what else uses the device, tune less (tune: lora), take a smaller image.size, or a larger GPU",
            )
        self.say(f"out of memory: going on with {how}; the effective batch stays {size}")

    def _checkpoint(self) -> None:
        self.classifier.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
        self.checkpointing = True
