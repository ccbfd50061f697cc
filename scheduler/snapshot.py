"""Read the ledger into a snapshot for the planner: one transaction, plain values."""

from __future__ import annotations

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from manylora.ledger import bases, workers
from manylora.ledger.states import JobState
from manylora.ledger.tables import Attempt, Job
from scheduler.planner import Running, Snapshot, Waiting, WorkerView


def read(
    tx: Session,
    *,
    worker_silence_seconds: float,
    most_jobs: int = 5000,
    most_preemptions: int = 0,
    settled: bool = True,
) -> Snapshot:
    """The queue's head, who is at work, the living workers, what is busy, which bases there are."""
    waiting = tx.execute(
        select(Job.id, Job.base, Job.base_fingerprint, Job.priority, Job.queued_at)
        .where(
            Job.state == JobState.QUEUED.value,
            or_(Job.not_before.is_(None), Job.not_before <= func.clock_timestamp()),
        )
        .order_by(Job.priority.desc(), Job.queued_at, Job.id)
        .limit(most_jobs)
    ).all()
    running = tx.execute(
        select(
            Job.id, Job.attempt, Attempt.queue, Job.priority, Attempt.started_at, Job.wish,
            Job.preemptions, Attempt.worker_id,
        )
        .join(Attempt, (Attempt.job_id == Job.id) & (Attempt.attempt == Job.attempt))
        .where(Job.state == JobState.RUNNING.value)
        .order_by(Job.id)
    ).all()  # fmt: skip
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
        running=tuple(
            Running(
                id_, attempt, queue, priority, at.timestamp() if at else 0.0, wish, preempted, who
            )
            for id_, attempt, queue, priority, at, wish, preempted, who in running
        ),
        most_preemptions=most_preemptions,
        settled=settled,
    )
