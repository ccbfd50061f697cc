"""The learning rate of a step. A pure function: no state, no optimizer."""

from __future__ import annotations

import math
from typing import Literal, get_args

from lora_core.errors import SpecError

Schedule = Literal["constant", "linear", "cosine"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)


def learning_rate(
    base_lr: float, schedule: Schedule, step: int, total_steps: int, warmup_steps: int
) -> float:
    """The rate of `step`, counted from 1 to `total_steps`.

    With w warm-up steps and p = (step - w - 1) / (total_steps - w):

        step <= w   base_lr * step / w
        constant    base_lr
        linear      base_lr * (1 - p)
        cosine      base_lr * (1 + cos(pi p)) / 2

    so step w + 1 runs at `base_lr`, and zero would be reached one step after the last.
    Raises: SpecError for a schedule there is not, or a step out of range.
    """
    if not 1 <= step <= total_steps:
        raise SpecError(f"step {step} is not in 1..{total_steps}")
    if schedule not in SCHEDULES:
        raise SpecError(f"schedule {schedule!r} is none of {', '.join(SCHEDULES)}")
    if step <= warmup_steps:
        return base_lr * step / warmup_steps
    if schedule == "constant":
        return base_lr
    done = (step - warmup_steps - 1) / (total_steps - warmup_steps)
    if schedule == "linear":
        return base_lr * (1.0 - done)
    return base_lr * 0.5 * (1.0 + math.cos(math.pi * done))
