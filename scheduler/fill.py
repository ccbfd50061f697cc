"""Fill free slots from lines, fairly. Pure: the one loop that decides who goes, for the scheduler,
for the simulation of faults and for the simulation of pools.

A line is one tenant's jobs for one base, in the order of their ranks. Next is the line of the
tenant whose turn is lowest; each job that goes is charged to its tenant at once, which puts its
turn back. So of each base only as many lines need be known as there are free slots: a line beyond
those could go only after each of them has.

Long jobs leave a quarter of a queue's slots to short ones, as long as short ones wait.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.capacity import most_long
from scheduler.fairness import charged, rank, turn
from scheduler.views import LONG, Tenant, Waiting


@dataclass
class Line:
    """One tenant's jobs for one base, first those of lowest rank."""

    tenant: str
    fingerprint: str
    jobs: Sequence[Waiting]
    since: float
    #: how many of them have gone
    at: int = 0
    aside: list[Waiting] = field(default_factory=list)


@dataclass
class Account:
    """A tenant's share while a round lasts."""

    weight: float
    used: float
    used_at: float
    active: int
    max_running: int | None
    left_today: float | None

    @classmethod
    def of(cls, tenant: Tenant) -> Account:
        """A copy that may be written to."""
        return cls(
            tenant.weight,
            tenant.used,
            tenant.used_at,
            tenant.active,
            tenant.max_running,
            tenant.left_today,
        )

    def stopped(self) -> str | None:
        """Why nothing more of it may go, if so."""
        if self.max_running is not None and self.active >= self.max_running:
            return f"your running quota of {self.max_running} is used"
        if self.left_today is not None and self.left_today <= 0.0:
            return "your device-hours of today are used; more at midnight UTC"
        return None

    def charge(self, cost: float, now: float, half_life: float) -> None:
        """One of its jobs goes."""
        self.used = charged(self.used, self.used_at, now, cost, half_life)
        self.used_at = now
        self.active += 1
        if self.left_today is not None:
            self.left_today -= cost


@dataclass
class Filled:
    """Who goes where, and which tenants may have no more, and why."""

    dispatches: list[tuple[Waiting, str]] = field(default_factory=list)
    stops: dict[str, str] = field(default_factory=dict)


def lines_of(
    waiting: Iterable[Waiting], since: Mapping[tuple[str, str], float] | None = None
) -> list[Line]:
    """Jobs in any order, as lines."""
    found: dict[tuple[str, str], list[Waiting]] = {}
    for job in waiting:
        found.setdefault((job.tenant, job.fingerprint), []).append(job)
    lines = []
    for (tenant, fingerprint), jobs in sorted(found.items()):
        jobs.sort(key=lambda j: (rank(j.queued_at, j.priority, j.deadline), j.job_id))
        first = min(j.queued_at for j in jobs)
        known = (since or {}).get((tenant, jobs[0].base), first)
        lines.append(Line(tenant, fingerprint, jobs, known))
    return lines


def fill(
    lines: Iterable[Line],
    accounts: dict[str, Account],
    free: dict[str, int],
    queues: Mapping[str, Sequence[str]],
    *,
    now: float,
    half_life: float,
    slots: Mapping[str, int] | None = None,
    long_busy: Mapping[str, int] | None = None,
) -> Filled:
    """Give the free slots away, the lowest turn first. `free` and `accounts` are written to.

    `slots` and `long_busy` (slots of each queue, and those that long jobs hold) bound the long
    jobs; without them nothing does.
    """
    result = Filled()
    room = {
        queue: most_long(count) - (long_busy or {}).get(queue, 0)
        for queue, count in (slots or {}).items()
    }

    def place(line: Line) -> float:
        account = accounts[line.tenant]
        return turn(account.used, account.used_at, line.since, account.weight, half_life)

    def target(job: Waiting, bounded: bool) -> str | None:
        best, most = None, 0
        for queue in queues.get(job.fingerprint, ()):
            full = bounded and job.cost >= LONG and room.get(queue, 1) <= 0
            if free.get(queue, 0) > most and not full:
                best, most = queue, free[queue]
        return best

    every = list(lines)
    heap = [(place(line), line.tenant, line.fingerprint, i) for i, line in enumerate(every)]
    heapq.heapify(heap)
    held: list[int] = []
    for bounded in (True, False):
        while heap:
            was, tenant, fingerprint, index = heapq.heappop(heap)
            line = every[index]
            account = accounts[tenant]
            current = place(line)
            if current > was:  # another line of the same tenant was charged meanwhile
                heapq.heappush(heap, (current, tenant, fingerprint, index))
                continue
            if not any(free.get(queue, 0) > 0 for queue in queues.get(fingerprint, ())):
                continue
            why = account.stopped()
            if why is not None:
                result.stops[tenant] = why
                continue
            job = _next(line, bounded)
            if job is None:
                if line.aside and bounded:
                    held.append(index)
                continue
            queue = target(job, bounded)
            if queue is None:
                line.aside.append(job)
            else:
                free[queue] -= 1
                if job.cost >= LONG:
                    room[queue] = room.get(queue, 0) - 1
                account.charge(job.cost, now, half_life)
                result.dispatches.append((job, queue))
            heapq.heappush(heap, (place(line), tenant, fingerprint, index))
        heap = [(place(every[i]), every[i].tenant, every[i].fingerprint, i) for i in held]
        heapq.heapify(heap)
        held = []
    for tenant in {line.tenant for line in every if line.at < len(line.jobs)}:
        why = accounts[tenant].stopped()
        if why is not None:
            result.stops[tenant] = why
    return result


def _next(line: Line, bounded: bool) -> Waiting | None:
    """Its next job; of those put aside once nobody else wants the room."""
    if not bounded:
        return line.aside.pop(0) if line.aside else None
    if line.at >= len(line.jobs):
        return None
    line.at += 1
    return line.jobs[line.at - 1]
