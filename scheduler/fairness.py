"""Fair shares, as numbers. Pure: times and amounts go in.

A tenant is charged the device-seconds of its jobs, and what it was charged is forgotten by halves:
after one half-life half of it, as in Slurm's multifactor priority and in Kueue's admission fair
sharing. Next is who had least for its weight. Since everybody forgets at the same rate, the order
of two tenants does not change while neither is charged, so it is kept as a number that stands
still, the *turn*:

    turn = used_at + half_life * log2(max(used, FLOOR) / weight)

in seconds: lowest first. It is the moment at which what was used will have decayed to one
device-second for each unit of weight. Who has had next to nothing is ordered by when it came, so
that no stream of newcomers overtakes somebody for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

T = TypeVar("T")
#: device-seconds below which shares used are taken for equal
FLOOR: Final = 60.0
#: ten minutes of waiting are worth one step of priority
AGEING: Final = 600.0
#: a deadline counts as if the job had been queued so many seconds before it
NOTICE: Final = 86_400.0


def decayed(used: float, seconds: float, half_life: float) -> float:
    """What is left of `used` after that many seconds."""
    left: float = 0.5 ** (max(0.0, seconds) / half_life)
    return used * left


def turn(used: float, used_at: float, since: float, weight: float, half_life: float) -> float:
    """The place of a tenant that had used so much at `used_at` and has had jobs waiting `since`.

    Lower is sooner. `weight` is positive; `used` in device-seconds; times in seconds.
    """
    newcomer = since + half_life * math.log2(FLOOR / weight)
    share = used / weight
    if share <= 0.0:  # of the smallest numbers a division makes nothing
        return newcomer
    return max(newcomer, used_at + half_life * math.log2(share))


def charged(used: float, used_at: float, now: float, cost: float, half_life: float) -> float:
    """What a tenant has used at `now`, once charged `cost` (or, below zero, given it back)."""
    return max(0.0, decayed(used, now - used_at, half_life) + cost)


def rank(queued_at: float, priority: int, deadline: float | None = None) -> float:
    """The place of a job in its tenant's own line, lowest first. Standing still, as turns do: a
    job of lower priority is overtaken by those that come within ten minutes for each step."""
    came = queued_at if deadline is None else min(queued_at, deadline - NOTICE)
    return came - AGEING * priority


def entitlements(
    capacity: float, weights: Mapping[T, float], demands: Mapping[T, float]
) -> dict[T, float]:
    """Weighted max-min shares: nobody gets more than it asks for, and what one leaves is divided
    among the others by their weights."""
    given = dict.fromkeys(weights, 0.0)
    open_ = {who for who in weights if demands.get(who, 0.0) > 0.0}
    left = capacity
    while open_ and left > 1e-12 * capacity:
        unit = left / sum(weights[who] for who in open_)
        full = {who for who in open_ if demands[who] <= unit * weights[who]}
        if not full:
            for who in open_:
                given[who] = unit * weights[who]
            break
        for who in full:
            given[who] = demands[who]
        left = capacity - sum(given.values())
        open_ -= full
    return given


def jain(values: Iterable[float]) -> float:
    """Jain's index: 1 when all are equal, 1/n when one has everything. Of nothing it is 1.

    Jain, Chiu and Hawe, "A quantitative measure of fairness", DEC-TR-301, 1984.
    """
    numbers = list(values)
    squares = sum(v * v for v in numbers)
    if squares == 0.0:
        return 1.0
    return sum(numbers) ** 2 / (len(numbers) * squares)
