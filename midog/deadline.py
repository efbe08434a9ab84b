"""Whether work will end in time, projected from the share that is done."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence


class OutOfTime(Exception):
    """The end is projected `seconds` after the deadline."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"{seconds:.1f} s late")


class Clock:
    """Projects the end from the share of `costs` that is done. `deadline`: a time of the monotonic clock, or None."""

    def __init__(self, deadline: float | None, costs: Sequence[float]) -> None:
        self.deadline, self.whole, self.done, self.started = deadline, sum(costs), 0.0, time.monotonic()

    def passed(self, cost: float) -> None:
        """Note that `cost` is done. Raises: OutOfTime when the projected end is after the deadline."""
        self.done += cost
        now = time.monotonic()
        late = now + (now - self.started) * (self.whole / self.done - 1) - (self.deadline or math.inf)
        if late > 0 and self.done < self.whole * (1 - 1e-9):
            raise OutOfTime(late)
