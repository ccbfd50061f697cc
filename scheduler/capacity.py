"""What the living workers can take: free slots by queue, and which queues serve a base. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from scheduler.views import Running, Snapshot

#: of a queue's slots, those that long jobs may hold while short ones wait
LONG_SHARE = 0.75


@dataclass(frozen=True)
class Capacity:
    """Slots of every queue, those free, and the queues that serve a fingerprint."""

    slots: dict[str, int]
    free: dict[str, int]
    queues: dict[str, tuple[str, ...]]
    #: the jobs at work on the workers that take wake-ups
    served: tuple[Running, ...]

    def slots_of(self, fingerprint: str) -> int:
        """All slots that serve it."""
        return sum(self.slots[queue] for queue in self.queues.get(fingerprint, ()))


def measure(snapshot: Snapshot) -> Capacity:
    """Count. A worker that drains, is silent or loads counts for nothing, and what still runs on
    it takes none of the slots of the others."""
    slots: Counter[str] = Counter()
    queues: dict[str, set[str]] = {}
    ready: set[str] = set()
    for worker in snapshot.workers:
        if worker.ready and worker.queue and worker.fingerprint:
            slots[worker.queue] += worker.slots
            queues.setdefault(worker.fingerprint, set()).add(worker.queue)
        if worker.ready and worker.queue:
            ready.add(worker.worker_id)
    served = tuple(job for job in snapshot.running if job.worker_id in ready)
    away = Counter(job.queue for job in snapshot.running if job.worker_id not in ready)
    free = {
        queue: max(0, count - snapshot.busy.get(queue, 0) + away[queue])
        for queue, count in slots.items()
    }
    return Capacity(
        dict(slots), free, {f: tuple(sorted(names)) for f, names in queues.items()}, served
    )


def most_long(slots: int) -> int:
    """How many of a queue's slots long jobs may hold while short ones wait; one at least."""
    return max(1, -int(-slots * LONG_SHARE // 1))
