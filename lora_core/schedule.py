"""The learning rate of a step."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate(
    peak: float, schedule: Schedule, step: int, total_steps: int, warmup_steps: int
) -> float:
    """The rate of `step` (from 1 to total_steps).

    Rises linearly to `peak` over the warm-up, then stays (constant), falls linearly to zero
    after the last step (linear), or along half a cosine (cosine).
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant":
        return peak
    done = (step - warmup_steps - 1) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return peak * (1.0 - done)
    return peak * 0.5 * (1.0 + math.cos(math.pi * done))
