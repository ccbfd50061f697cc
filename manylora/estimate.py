"""When a job will start, and how sure that is. Pure.

The first guess is a division: those ahead, by the rate at which slots become free. It is wrong by
a factor, so the factors of the last waits are kept, and p50 and p90 are read from them (split
conformal prediction; Vovk et al., 2005). Where the rate changes, the level that p90 is read at
moves until nine of ten waits end by it (Gibbs and Candès, "Adaptive conformal inference under
distribution shift", 2021).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

#: how many waits are remembered
KEPT: Final = 256
#: until so many are known, the p90 is three times the first guess
ENOUGH: Final = 20
_AIM: Final = 0.9
_STEP: Final = 0.01


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the (sorted) values do not exceed."""
    if not values:
        return math.nan
    return values[min(len(values) - 1, max(0, math.ceil(share * len(values)) - 1))]


@dataclass(frozen=True)
class Outlook:
    """What is known of a pool. `turns`: turns of its lines at even distances among them."""

    slots: int
    active: int
    tenants: int
    weights: float
    #: seconds a job holds a slot
    service: float
    turns: Sequence[float] = ()
    ratios: Sequence[float] = ()
    level: float = _AIM


@dataclass(frozen=True)
class Foretold:
    """Seconds until something: the raw guess, and two quantiles of it."""

    raw: float
    p50: float
    p90: float


def lines_ahead(turn: float, outlook: Outlook) -> float:
    """How many lines have a lower turn, about."""
    if len(outlook.turns) < 2:
        return 0.0
    place = bisect.bisect_left(outlook.turns, turn) / len(outlook.turns)
    return place * outlook.tenants


def guess(own_ahead: int, lines: float, weight: float, outlook: Outlook) -> float:
    """Seconds until the start of a job with so many of its tenant's own and so many other lines
    ahead of it; at least one."""
    if outlook.slots <= 0:
        return float("inf")
    if own_ahead == 0 and outlook.active < outlook.slots:
        return 1.0
    weights = max(outlook.weights, weight)
    mine = max(outlook.slots * weight / weights, 1e-9)
    return max(1.0, outlook.service * ((lines + 1.0) / outlook.slots + own_ahead / mine))


def foretell(raw: float, outlook: Outlook) -> Foretold:
    """The guess with the factors of the last waits on it."""
    if len(outlook.ratios) < ENOUGH:
        return Foretold(raw, raw, 3.0 * raw)
    known = sorted(outlook.ratios)
    p50 = percentile(known, 0.5)
    # Beyond the largest ratio known, a level still has to mean more.
    p90 = percentile(known, min(outlook.level, 1.0)) * max(1.0, 1.0 + 4 * (outlook.level - 1.0))
    return Foretold(raw, p50 * raw, max(p50, p90) * raw)


def spans(cost: float, ratios: Sequence[float]) -> tuple[float, float]:
    """p50 and p90 of how long a job of that cost holds a slot, by how long others did."""
    if len(ratios) < ENOUGH:
        return cost, 3.0 * cost
    known = sorted(ratios)
    return percentile(known, 0.5) * cost, percentile(known, _AIM) * cost


def learn(outlook: Outlook, waited: float, raw: float, promised: float) -> Outlook:
    """What a wait that is over teaches."""
    ratios = [*outlook.ratios, max(waited, 1.0) / max(raw, 1.0)][-KEPT:]
    late = waited > promised
    level = outlook.level + _STEP * ((1.0 if late else 0.0) - (1.0 - _AIM))
    return replace(outlook, ratios=ratios, level=min(1.5, max(0.5, level)))
