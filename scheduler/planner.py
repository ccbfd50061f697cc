"""Who goes next: a pure function from a snapshot to a plan. No clock, no database, no chance.

Policy: per pool, higher priority first, then the longest waiting; never more wake-ups out than
the pool has free slots. Where none is free, a job of lower priority is asked to make room: the
lowest first, and of equals the one that has run the shortest. An unpinned worker without work
gets the base most jobs wait for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Waiting:
    """A queued job. `queued_at` in seconds since the epoch."""

    job_id: str
    base: str
    fingerprint: str
    priority: int
    queued_at: float


@dataclass(frozen=True)
class Running:
    """A job at work. `wish`: what it is asked for already; its slot is about to be free."""

    job_id: str
    attempt: int
    queue: str
    priority: int
    started_at: float
    wish: str | None = None
    preemptions: int = 0
    worker_id: str | None = None


@dataclass(frozen=True)
class WorkerView:
    """A living worker. `queue` is None until it holds a base and is ready."""

    worker_id: str
    slots: int
    pinned: bool
    assigned_base: str | None
    fingerprint: str | None
    queue: str | None
    ready: bool


@dataclass(frozen=True)
class Snapshot:
    """All that the planner knows."""

    waiting: tuple[Waiting, ...]
    workers: tuple[WorkerView, ...]
    #: open attempts per queue
    busy: dict[str, int]
    #: ready bases by name, oldest first
    bases: tuple[str, ...]
    running: tuple[Running, ...] = ()
    #: how often a job makes room
    most_preemptions: int = 0
    #: whether silence may be held against a worker; if not, nothing is taken from anybody
    settled: bool = True


@dataclass
class Plan:
    """What to do, and why the rest waits."""

    dispatches: list[tuple[str, str]] = field(default_factory=list)
    assignments: list[tuple[str, str]] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    #: (job, attempt) of those asked to make room
    preemptions: list[tuple[str, int]] = field(default_factory=list)


def plan(snapshot: Snapshot) -> Plan:
    """Decide one round."""
    result = Plan()
    slots: Counter[str] = Counter()
    queues: dict[str, str] = {}
    for worker in snapshot.workers:
        if worker.ready and worker.queue and worker.fingerprint:
            slots[worker.queue] += worker.slots
            queues.setdefault(worker.fingerprint, worker.queue)
    served = _served(snapshot)
    # What runs on a worker that drains or is silent takes none of the slots counted here.
    away = Counter(job.queue for job in snapshot.running if job not in served)
    free = {
        queue: count - snapshot.busy.get(queue, 0) + away[queue] for queue, count in slots.items()
    }
    order = sorted(snapshot.waiting, key=lambda j: (-j.priority, j.queued_at, j.job_id))
    ahead: Counter[str] = Counter()
    leaving = Counter(job.queue for job in served if job.wish is not None)
    victims = _victims(snapshot, served) if snapshot.settled else {}
    for job in order:
        queue = queues.get(job.fingerprint)
        if queue is None:
            result.reasons[job.job_id] = _no_worker(job, snapshot)
        elif free[queue] > 0:
            free[queue] -= 1
            result.dispatches.append((job.job_id, queue))
        elif leaving[queue] > 0:
            leaving[queue] -= 1
            result.reasons[job.job_id] = f"a slot of {job.base} is about to be free"
        elif victims.get(queue) and victims[queue][0].priority < job.priority:
            victim = victims[queue].pop(0)
            result.preemptions.append((victim.job_id, victim.attempt))
            result.reasons[job.job_id] = "a job of lower priority is making room"
        else:
            result.reasons[job.job_id] = (
                f"all {slots[queue]} slots of {job.base} are taken; {ahead[queue]} ahead"
            )
            ahead[queue] += 1
    result.assignments = _assign(snapshot)
    return result


def _served(snapshot: Snapshot) -> set[Running]:
    """The jobs at work on the workers that take wake-ups."""
    ready = {worker.worker_id for worker in snapshot.workers if worker.ready and worker.queue}
    return {job for job in snapshot.running if job.worker_id in ready}


def _victims(snapshot: Snapshot, served: set[Running]) -> dict[str, list[Running]]:
    """Per queue, who makes room, in that order."""
    victims: dict[str, list[Running]] = {}
    for job in sorted(served, key=lambda j: (j.priority, -j.started_at, j.job_id)):
        if job.wish is None and job.preemptions < snapshot.most_preemptions:
            victims.setdefault(job.queue, []).append(job)
    return victims


def _no_worker(job: Waiting, snapshot: Snapshot) -> str:
    if any(worker.assigned_base == job.base for worker in snapshot.workers):
        return f"a worker is loading {job.base}"
    return f"no worker serves {job.base}"


def _assign(snapshot: Snapshot) -> list[tuple[str, str]]:
    """A base for every unpinned worker that has none, and another one for a worker whose own
    base nobody waits for while another base has no worker at all."""
    demand = Counter(job.base for job in snapshot.waiting)
    served = {worker.assigned_base for worker in snapshot.workers}
    wanted = [base for base, _ in demand.most_common() if base not in served]
    given: list[tuple[str, str]] = []
    for worker in snapshot.workers:
        if worker.pinned:
            continue
        if worker.assigned_base is None:
            if wanted:
                given.append((worker.worker_id, wanted.pop(0)))
            elif demand:
                given.append((worker.worker_id, demand.most_common(1)[0][0]))
            elif snapshot.bases:
                given.append((worker.worker_id, snapshot.bases[0]))
        elif wanted and snapshot.settled and worker.ready and worker.queue:
            idle = not snapshot.busy.get(worker.queue, 0) and not demand[worker.assigned_base]
            if idle:
                given.append((worker.worker_id, wanted.pop(0)))
    return given
