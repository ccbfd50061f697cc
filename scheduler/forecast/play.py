"""Play demand on a pool: one base, `slots` places for jobs, a round every tick.

Which job goes is decided by `scheduler/fill.py`, which the scheduler itself calls; how long it was
foretold to wait, by `manylora/estimate.py`. A policy is what these two are told: `fair` is the
service's; `fifo` puts all jobs into one line by age, `priority` into one line by rank.
"""

from __future__ import annotations

import heapq
import math
from array import array
from dataclasses import dataclass, field

from manylora import estimate
from manylora.estimate import Outlook
from scheduler.fairness import charged, rank, turn
from scheduler.fill import Account, Line, fill
from scheduler.forecast.demand import Demand
from scheduler.views import HALF_LIFE, Waiting

POLICIES = ("fair", "fifo", "priority")
_LATELY = 0.02
_POOL, _QUEUE = "base", "queue"
_QUEUES = {_POOL: (_QUEUE,)}


@dataclass
class Played:
    """What came of each job, by its index in the demand: when it started (seconds; `inf` if it had
    not by the end), and the p50 and p90 of its start that it was told."""

    policy: str
    slots: int
    starts: array[float]
    p50: array[float]
    p90: array[float]
    end: float
    #: slot-seconds used up to the end, and slot-seconds idle while jobs waited
    busy: float = 0.0
    idle: float = 0.0
    rounds: int = 0
    #: (time, share of the slots taken, jobs waiting), now and then
    seen: list[tuple[float, float, int]] = field(default_factory=list)


class _Pool:
    """The pool while it is played."""

    def __init__(
        self, demand: Demand, slots: int, policy: str, half_life: float, tick: float, end: float
    ) -> None:
        self.demand, self.slots, self.policy = demand, slots, policy
        self.half_life, self.tick, self.end = half_life, tick, end
        self.free = slots
        self.waiting = 0
        self.queues: dict[str, list[tuple[float, int]]] = {}
        self.since: dict[str, float] = {}
        self.version: dict[str, int] = {}
        self.accounts: dict[str, Account] = {}
        self.order: list[tuple[float, str, int]] = []
        self.finishes: list[tuple[float, int]] = []
        size = len(demand)
        self.result = Played(
            policy, slots, array("d", [math.inf]) * size, array("d", bytes(8 * size)),
            array("d", bytes(8 * size)), end,
        )  # fmt: skip
        self.now = 0.0
        self.service = 60.0
        self.raws: dict[int, float] = {}
        self.weights = 0.0
        #: jobs waiting or at work, by tenant: who counts in the shares
        self.open: dict[str, int] = {}
        self.outlook = Outlook(slots, 0, 0, 0.0, 60.0)
        self.factors = 1.0, 3.0
        self.learned = 0
        self.looked = -math.inf
        self.look_every = max(10.0, end / 2000)

    def name(self, index: int) -> str:
        return str(self.demand.tenants[index]) if self.policy == "fair" else "all"

    def account(self, tenant: str) -> Account:
        found = self.accounts.get(tenant)
        if found is None:
            weight = 1.0 if tenant == "all" else self.demand.weights.get(int(tenant), 1.0)
            found = self.accounts[tenant] = Account(weight, 0.0, 0.0, 0, None, None)
        return found

    def pass_time(self, now: float) -> None:
        """Add up what the slots did since."""
        until = min(now, self.end)
        if until > self.now:
            self.result.busy += (self.slots - self.free) * (until - self.now)
            if self.waiting:
                self.result.idle += min(self.free, self.waiting) * (until - self.now)
        self.now = now

    def arrive(self, index: int) -> None:
        """A job is submitted."""
        at, tenant = self.demand.times[index], self.name(index)
        account = self.account(tenant)
        queue = self.queues.setdefault(tenant, [])
        if not queue:
            self.since[tenant] = at
        if self.open.get(tenant, 0) == 0:
            self.weights += account.weight
        self.open[tenant] = self.open.get(tenant, 0) + 1
        place = turn(account.used, account.used_at, self.since[tenant], account.weight,
                     self.half_life)  # fmt: skip
        self.foretell(index, len(queue), place, account.weight)
        deadline = self.demand.deadlines[index]
        priority = 0 if self.policy == "fifo" else self.demand.priorities[index]
        known = None if math.isinf(deadline) or self.policy == "fifo" else deadline
        heapq.heappush(queue, (rank(at, priority, known), index))
        self.waiting += 1
        if len(queue) == 1:
            self.enter(tenant, place)

    def enter(self, tenant: str, place: float) -> None:
        version = self.version[tenant] = self.version.get(tenant, 0) + 1
        heapq.heappush(self.order, (place, tenant, version))

    def foretell(self, index: int, own: int, place: float, weight: float) -> None:
        if self.now - self.looked >= self.look_every:
            self.look()
        known = Outlook(
            self.slots, self.slots - self.free, self.outlook.tenants, self.weights, self.service,
            self.outlook.turns,
        )  # fmt: skip
        raw = estimate.guess(own, estimate.lines_ahead(place, known), weight, known)
        self.raws[index] = raw
        self.result.p50[index] = raw * self.factors[0]
        self.result.p90[index] = raw * self.factors[1]

    def look(self) -> None:
        """What the scheduler sums up every few seconds."""
        self.looked = self.now
        turns = sorted(
            place for place, tenant, version in self.order if version == self.version[tenant]
        )
        step = max(1, len(turns) // 64)
        self.outlook = Outlook(
            self.slots, 0, len(turns), self.weights, self.service, turns[::step],
            self.outlook.ratios, self.outlook.level,
        )  # fmt: skip

    def learn(self, index: int, waited: float) -> None:
        raw = self.raws.pop(index)
        self.outlook = estimate.learn(self.outlook, waited, raw, self.result.p90[index])
        self.learned += 1
        if self.learned % 16 == 0 or self.learned == estimate.ENOUGH:
            told = estimate.foretell(1.0, self.outlook)
            self.factors = told.p50, told.p90

    def finish(self, index: int) -> None:
        """A job has ended: its slot is free, and its share is set right."""
        tenant, took = self.name(index), self.demand.seconds[index]
        account = self.accounts[tenant]
        account.active -= 1
        self.free += 1
        self.service += _LATELY * (took - self.service)
        cost = self.cost(index)
        account.used = charged(account.used, account.used_at, self.now, took - cost, self.half_life)
        account.used_at = max(account.used_at, self.now)
        self.open[tenant] -= 1
        if self.open[tenant] == 0:
            self.weights -= account.weight
        if self.queues[tenant]:
            self.enter(tenant, self.place(tenant))

    def place(self, tenant: str) -> float:
        account = self.accounts[tenant]
        return turn(
            account.used, account.used_at, self.since[tenant], account.weight, self.half_life
        )

    def cost(self, index: int) -> float:
        """What the scheduler thinks it will take: off by up to a factor of two."""
        wrong = ((index * 2654435761) % 4096) / 4096
        factor: float = 2.0 ** (2.0 * wrong - 1.0)
        return self.demand.seconds[index] * factor

    def decide(self, now: float) -> None:
        """One round."""
        self.result.rounds += 1
        lines: list[Line] = []
        while self.order and len(lines) < self.free:
            _, tenant, version = heapq.heappop(self.order)
            queue = self.queues[tenant]
            if version != self.version[tenant] or not queue:
                continue
            most = self.free if self.policy != "fair" else 1 + 2 * self.free // (len(lines) + 1)
            jobs = [
                self.view(heapq.heappop(queue)[1], tenant) for _ in range(min(most, len(queue)))
            ]
            lines.append(Line(tenant, _POOL, jobs, self.since[tenant]))
        free = {_QUEUE: self.free}
        filled = fill(lines, self.accounts, free, _QUEUES, now=now, half_life=self.half_life)
        self.free = free[_QUEUE]
        gone = set()
        for job, _ in filled.dispatches:
            index = int(job.job_id)
            gone.add(job.job_id)
            self.waiting -= 1
            self.result.starts[index] = now
            self.learn(index, now - self.demand.times[index])
            heapq.heappush(self.finishes, (now + self.demand.seconds[index], index))
        for line in lines:
            queue = self.queues[line.tenant]
            for job in line.jobs:
                if job.job_id not in gone:
                    place = rank(job.queued_at, job.priority, job.deadline)
                    heapq.heappush(queue, (place, int(job.job_id)))
            if queue:
                self.enter(line.tenant, self.place(line.tenant))

    def view(self, index: int, tenant: str) -> Waiting:
        fifo, deadline = self.policy == "fifo", self.demand.deadlines[index]
        return Waiting(
            str(index), _POOL, _POOL, 0 if fifo else self.demand.priorities[index],
            self.demand.times[index], tenant, self.cost(index),
            None if fifo or math.isinf(deadline) else deadline,
        )  # fmt: skip


def play(
    demand: Demand,
    slots: int,
    *,
    policy: str = "fair",
    half_life: float = HALF_LIFE,
    tick: float = 1.0,
    end: float | None = None,
) -> Played:
    """Play it to the end of the demand (or to `end`, seconds); what has started by then counts."""
    last = demand.times[-1] if end is None else end
    pool = _Pool(demand, slots, policy, half_life, tick, last)
    index, size, finishes = 0, len(demand), pool.finishes
    every, next_seen = last / 400, 0.0
    times = demand.times
    while True:
        now = min(
            times[index] if index < size else math.inf, finishes[0][0] if finishes else math.inf
        )
        if now > last:
            break
        at = (math.floor(now / tick) + 1) * tick
        while True:  # all that happens before the next round
            came = times[index] if index < size else math.inf
            over = finishes[0][0] if finishes else math.inf
            if min(came, over) >= at:
                break
            pool.pass_time(min(came, over))
            if over <= came:
                pool.finish(heapq.heappop(finishes)[1])
            else:
                pool.arrive(index)
                index += 1
        pool.pass_time(at)
        if pool.free and pool.waiting:
            pool.decide(at)
        if at >= next_seen:
            pool.result.seen.append((at, 1.0 - pool.free / slots, pool.waiting))
            next_seen = at + every
    pool.pass_time(last)
    return pool.result
