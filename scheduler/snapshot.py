"""Read the ledger into a snapshot for the planner: one transaction, plain values."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from manylora.ledger import bases, workers
from manylora.ledger.states import JobState
from manylora.ledger.tables import Job
from scheduler.planner import Snapshot, Waiting, WorkerView


def read(tx: Session, *, worker_silence_seconds: float, most_jobs: int = 5000) -> Snapshot:
    """The queue's head, the living workers, what is busy, which bases there are."""
    waiting = tx.execute(
        select(Job.id, Job.base, Job.base_fingerprint, Job.priority, Job.queued_at)
        .where(Job.state == JobState.QUEUED.value)
        .order_by(Job.priority.desc(), Job.queued_at, Job.id)
        .limit(most_jobs)
    ).all()
    alive = workers.alive(tx, within_seconds=worker_silence_seconds)
    return Snapshot(
        waiting=tuple(
            Waiting(id_, base, fingerprint, priority, at.timestamp() if at else 0.0)
            for id_, base, fingerprint, priority, at in waiting
        ),
        workers=tuple(
            WorkerView(
                w.id,
                w.slots,
                w.pinned,
                w.assigned_base,
                w.fingerprint,
                w.queue,
                w.state == "ready",
            )
            for w in alive
            if w.state != "draining"
        ),
        busy=workers.busy(tx),
        bases=tuple(b.name for b in sorted(bases.ready(tx), key=lambda b: b.created_at)),
    )
