"""Who goes next: a pure function from a snapshot to a plan. No clock, no database, no chance.

Policy: free slots go to the tenant that has had least for its weight (`fairness.py`, `fill.py`);
within a tenant by priority with ageing; never more wake-ups out than a pool has free slots, and
never more of a tenant than its quotas. Where no slot is free, a job of lower priority is asked to
make room: one of the same tenant's, or, for a tenant below its share, one of a tenant above its
own; the lowest first, and of equals the one that has run the shortest. An unpinned worker without
work gets the base most jobs wait for; a worker is given another base only once it is idle.
"""

from __future__ import annotations

from collections import Counter

from scheduler.capacity import Capacity, measure
from scheduler.fairness import turn
from scheduler.fill import Account, fill, lines_of
from scheduler.views import LONG, Plan, Running, Snapshot, Tenant, Waiting, WorkerView

_UNKNOWN = Tenant()
#: seconds a base may wait for a worker before one that is warm with another base is given to it
AFFINITY = 600.0


def plan(snapshot: Snapshot) -> Plan:
    """Decide one round."""
    result = Plan()
    capacity = measure(snapshot)
    lines = lines_of(snapshot.waiting, snapshot.since)
    accounts = {
        name: Account.of(snapshot.tenants.get(name, _UNKNOWN))
        for name in {line.tenant for line in lines}
    }
    free = dict(capacity.free)
    long_busy = Counter(job.queue for job in capacity.served if job.cost >= LONG)
    filled = fill(
        lines,
        accounts,
        free,
        capacity.queues,
        now=snapshot.now,
        half_life=snapshot.half_life,
        slots=capacity.slots,
        long_busy=long_busy,
    )
    result.dispatches = [(job.job_id, queue) for job, queue in filled.dispatches]
    result.stops = filled.stops
    gone = {job.job_id for job, _ in filled.dispatches}
    order = sorted(
        (line for line in lines),
        key=lambda line: (
            turn(
                accounts[line.tenant].used,
                accounts[line.tenant].used_at,
                line.since,
                accounts[line.tenant].weight,
                snapshot.half_life,
            ),
            line.tenant,
        ),
    )
    rest = [job for line in order for job in line.jobs if job.job_id not in gone]
    _explain(snapshot, capacity, filled.stops, rest, result)
    result.assignments = _assign(snapshot)
    for base in {job.base for job in snapshot.waiting} | {
        worker.assigned_base for worker in snapshot.workers if worker.assigned_base
    }:
        result.pools[base] = _pool(base, snapshot, capacity)
    return result


def _explain(
    snapshot: Snapshot,
    capacity: Capacity,
    stops: dict[str, str],
    rest: list[Waiting],
    result: Plan,
) -> None:
    """Why each of the rest waits, and who makes room for some of them."""
    room = _Room(snapshot, capacity) if snapshot.settled else None
    leaving = Counter(job.queue for job in capacity.served if job.wish is not None)
    ahead: Counter[str] = Counter()
    # An urgent job asks first for room; the order of those that only wait is their lines'.
    for job in sorted(rest, key=lambda j: -j.priority):
        queues = capacity.queues.get(job.fingerprint, ())
        away = next((queue for queue in queues if leaving[queue] > 0), None)
        victim = room.victim(job, queues) if room and job.tenant not in stops else None
        if not queues:
            result.reasons[job.job_id] = _no_worker(job.base, snapshot)
        elif job.tenant in stops:
            result.reasons[job.job_id] = stops[job.tenant]
        elif away is not None:
            leaving[away] -= 1
            result.reasons[job.job_id] = f"a slot of {job.base} is about to be free"
        elif room is not None and victim is not None:
            room.take(job, victim)
            result.preemptions.append((victim.job_id, victim.attempt))
            result.reasons[job.job_id] = "a job of lower priority is making room"
        else:
            result.reasons[job.job_id] = (
                f"all {capacity.slots_of(job.fingerprint)} slots of {job.base} are taken; "
                f"{ahead[job.fingerprint]} ahead"
            )
            ahead[job.fingerprint] += 1


class _Room:
    """Who makes room for whom. Each of those who run is asked once at most."""

    def __init__(self, snapshot: Snapshot, capacity: Capacity) -> None:
        self.running: Counter[tuple[str, str]] = Counter()
        self.victims: dict[str, list[Running]] = {}
        for job in sorted(capacity.served, key=lambda j: (j.priority, -j.started_at, j.job_id)):
            self.running[job.tenant, job.queue] += 1
            if job.wish is None and job.preemptions < snapshot.most_preemptions:
                self.victims.setdefault(job.queue, []).append(job)
        self.share: dict[tuple[str, str], float] = {}
        wanting = {(job.tenant, q) for job in snapshot.waiting
                   for q in capacity.queues.get(job.fingerprint, ())}  # fmt: skip
        for queue, slots in capacity.slots.items():
            here = sorted({t for t, q in wanting | set(self.running) if q == queue})
            weights = {t: snapshot.tenants.get(t, _UNKNOWN).weight for t in here}
            for tenant, weight in weights.items():
                self.share[tenant, queue] = slots * weight / sum(weights.values())

    def victim(self, job: Waiting, queues: tuple[str, ...]) -> Running | None:
        """The first that may be asked on behalf of that job."""
        for queue in queues:
            below = self.running[job.tenant, queue] + 1 <= self.share.get((job.tenant, queue), 0.0)
            for other in self.victims.get(queue, ()):
                if other.priority >= job.priority:
                    break
                theirs = self.running[other.tenant, queue] > self.share[other.tenant, queue]
                if other.tenant == job.tenant or (below and theirs):
                    return other
        return None

    def take(self, job: Waiting, victim: Running) -> None:
        """That one is asked."""
        self.victims[victim.queue].remove(victim)
        self.running[victim.tenant, victim.queue] -= 1
        self.running[job.tenant, victim.queue] += 1


def _pool(base: str, snapshot: Snapshot, capacity: Capacity) -> tuple[int, str | None]:
    """Slots that serve a base, and why nothing for it is sent out, if so."""
    prints = {job.fingerprint for job in snapshot.waiting if job.base == base} | {
        w.fingerprint for w in snapshot.workers if w.assigned_base == base and w.fingerprint
    }
    slots = sum(capacity.slots_of(fingerprint) for fingerprint in sorted(prints))
    return slots, None if slots else _no_worker(base, snapshot)


def _no_worker(base: str, snapshot: Snapshot) -> str:
    if any(worker.assigned_base == base for worker in snapshot.workers):
        return f"a worker is loading {base}"
    return f"no worker serves {base}"


def _assign(snapshot: Snapshot) -> list[tuple[str, str]]:
    """A base for every unpinned worker that has none, and another one for a worker whose own
    base nobody waits for while another base has no worker at all. A warm base is kept while jobs
    come for it, but not for ever: one that has waited `AFFINITY` seconds gets a worker."""
    demand: Counter[str] = Counter(job.base for job in snapshot.waiting)
    if snapshot.demand is not None:
        demand = Counter({base: count for base, count in snapshot.demand.items() if count > 0})
    served = Counter(worker.assigned_base for worker in snapshot.workers)
    popular = sorted(demand, key=lambda base: (-demand[base], base))
    wanted = [base for base in popular if base not in served]
    given: list[tuple[str, str]] = []
    busy: list[WorkerView] = []
    for worker in sorted(snapshot.workers, key=lambda w: w.worker_id):
        if worker.pinned:
            continue
        if worker.assigned_base is None:
            if wanted:
                given.append((worker.worker_id, wanted.pop(0)))
            elif popular:
                given.append((worker.worker_id, popular[0]))
            elif snapshot.bases:
                given.append((worker.worker_id, snapshot.bases[0]))
        elif wanted and snapshot.settled and worker.ready and worker.queue:
            idle = not snapshot.busy.get(worker.queue, 0) and not demand[worker.assigned_base]
            if idle:
                given.append((worker.worker_id, wanted.pop(0)))
            else:
                busy.append(worker)
    late = {j.base for j in snapshot.waiting if snapshot.now - j.queued_at > AFFINITY}
    for base in [base for base in wanted if base in late][: len(busy)]:
        worker = min(
            busy,
            key=lambda w: (-served[w.assigned_base], demand[str(w.assigned_base)], w.worker_id),
        )
        busy.remove(worker)
        served[worker.assigned_base] -= 1
        given.append((worker.worker_id, base))
    return given
