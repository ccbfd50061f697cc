"""What a play was like: how full the slots were, who waited how long, how fair it was, what an
adapter cost. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from typing import Any

from manylora.estimate import percentile
from scheduler.fairness import entitlements, jain
from scheduler.forecast.demand import Demand
from scheduler.forecast.play import Played

#: moments of a play at which shares are compared
LOOKS = 5


def judge(demand: Demand, played: Played, *, slots_per_device: int, price: float) -> dict[str, Any]:
    """The figures of one play. Waits in seconds; `price` of a device-hour."""
    kinds = classes(demand, played.slots, played.end)
    waits: dict[str, list[float]] = {"small": [], "large": [], "flood": []}
    told = kept = 0
    for index, start in enumerate(played.starts):
        wait = start - demand.times[index]
        if math.isinf(start):
            # It waits still: nobody knows how long it will, but at least so long.
            wait = played.end - demand.times[index]
            if wait < played.p90[index]:
                waits[kinds[demand.tenants[index]]].append(wait)
                continue
        waits[kinds[demand.tenants[index]]].append(wait)
        told += 1
        kept += wait <= played.p90[index]
    started = sum(not math.isinf(start) for start in played.starts)
    devices = played.slots / slots_per_device
    hours = devices * played.end / 3600
    return {
        "policy": played.policy,
        "devices": round(devices),
        "slots": played.slots,
        "days": played.end / 86_400,
        "jobs": len(demand),
        "started": started,
        "utilisation": played.busy / (played.slots * played.end),
        "idle_while_waiting": played.idle / (played.slots * played.end),
        "jain": fairness(demand, played),
        "waits": {kind: _waits(found) for kind, found in waits.items() if found},
        "small_alone_p95": alone(demand, played.slots, kinds),
        "started_by_p90": kept / told if told else None,
        "cost_per_adapter": hours * price / started if started else None,
        "rounds": played.rounds,
    }


def _waits(found: list[float]) -> dict[str, float]:
    found = sorted(found)
    return {
        "jobs": len(found),
        "p50": percentile(found, 0.5),
        "p95": percentile(found, 0.95),
        "max": found[-1],
    }


def weights_of(demand: Demand) -> dict[int, float]:
    """The weights of the tenants that submit anything."""
    return {tenant: demand.weights.get(tenant, 1.0) for tenant in set(demand.tenants)}


def classes(demand: Demand, slots: int, end: float) -> dict[int, str]:
    """Small tenants ask for no more than their share of the pool, large ones for more."""
    weights = weights_of(demand)
    unit = slots * end / sum(weights.values())
    asked: dict[int, float] = dict.fromkeys(weights, 0.0)
    for tenant, seconds in zip(demand.tenants, demand.seconds, strict=True):
        asked[tenant] += seconds
    found = {
        tenant: "small" if total <= unit * weights[tenant] else "large"
        for tenant, total in asked.items()
    }
    if demand.flooding is not None:
        found[demand.flooding] = "flood"
    return found


def fairness(demand: Demand, played: Played) -> float:
    """The lowest of some moments' Jain index over what tenants got, divided by what they were
    entitled to by then: the weighted max-min share of what all slots could have done, for what
    each could have used (a job cannot have had more than the time since it came)."""
    weights = weights_of(demand)
    lowest = 1.0
    for look in range(1, LOOKS + 1):
        at = played.end * look / LOOKS
        got: dict[int, float] = dict.fromkeys(weights, 0.0)
        asked: dict[int, float] = dict.fromkeys(weights, 0.0)
        for index, came in enumerate(demand.times):
            if came >= at:
                break
            tenant, seconds = demand.tenants[index], demand.seconds[index]
            asked[tenant] += min(seconds, at - came)
            start = played.starts[index]
            if start < at:
                got[tenant] += min(seconds, at - start)
        entitled = entitlements(played.slots * at, weights, asked)
        ratios = [got[t] / entitled[t] for t in weights if entitled[t] > 0.0]
        lowest = min(lowest, jain(ratios))
    return lowest


def alone(demand: Demand, slots: int, kinds: dict[int, str]) -> float | None:
    """The p95 wait of the small tenants' jobs, were each of them alone with its share of the
    slots: whole ones, or one that is as slow as the part of a slot it is entitled to."""
    weights = weights_of(demand)
    total = sum(weights.values())
    jobs: dict[int, list[tuple[float, float]]] = {}
    for index, tenant in enumerate(demand.tenants):
        if kinds[tenant] == "small":
            jobs.setdefault(tenant, []).append((demand.times[index], demand.seconds[index]))
    waits: list[float] = []
    for tenant, own in jobs.items():
        share = slots * weights[tenant] / total
        waits += _served(own, max(1, int(share)), min(1.0, share))
    return percentile(sorted(waits), 0.95) if waits else None


def _served(jobs: Iterable[tuple[float, float]], slots: int, speed: float) -> list[float]:
    """Waits of jobs taken in order by so many slots."""
    free = [0.0] * slots
    waits = []
    for came, seconds in jobs:
        start = max(came, heapq.heappop(free))
        heapq.heappush(free, start + seconds / speed)
        waits.append(start - came)
    return waits
