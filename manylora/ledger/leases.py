"""Leases: claim, renew, release, rescue. The attempt's number is the fencing token; time only
decides liveness, and it is the database's time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from manylora import crash
from manylora.errors import LostError
from manylora.ledger import events, jobs
from manylora.ledger.states import JobState
from manylora.ledger.tables import Adapter, Attempt, Job

_NOW = func.clock_timestamp()


def _in(seconds: float) -> Any:
    return _NOW + dt.timedelta(seconds=seconds)


def dispatch(tx: Session, job_id: str, *, queue: str, deadline_seconds: float) -> int:
    """Raise a queued job's attempt and mark it dispatched; returns the new attempt.

    Raises: LostError when it is not queued any more.
    """
    job = jobs.move(
        tx,
        job_id,
        "dispatch",
        actor="scheduler",
        message="A slot is free: sent to the pool",
        dispatch_deadline=_in(deadline_seconds),
        waiting_for=None,
    )
    tx.add(Attempt(job_id=job_id, attempt=job.attempt, queue=queue))
    return job.attempt


def claim(tx: Session, job_id: str, attempt: int, *, worker_id: str, ttl_seconds: float) -> Job:
    """Take the lease of a dispatched attempt.

    Raises: LostError when someone has it, or the wake-up is stale, repeated or forged.
    """
    job = jobs.move(
        tx,
        job_id,
        "claim",
        actor=worker_id,
        attempt=attempt,
        message="Fine-tuning job started",
        started_at=func.coalesce(Job.started_at, _NOW),
    )
    tx.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.attempt == attempt)
        .values(worker_id=worker_id, started_at=_NOW, lease_expires_at=_in(ttl_seconds))
    )
    return job


def renew(
    tx: Session,
    job_id: str,
    attempt: int,
    *,
    ttl_seconds: float,
    step: int,
    device_seconds: float,
    points: list[tuple[int, dict[str, Any]]],
    total_steps: int | None = None,
    notes: Sequence[tuple[str, dict[str, Any]]] = (),
) -> None:
    """Extend the lease and report progress: step, device-seconds of this attempt, metric points,
    and `notes` (message, data) for the job's history.

    Raises: LostError when the attempt is no longer the job's, or the job is no longer running
    (cancelled, for one): leave the slot.
    """
    job = tx.scalar(
        update(Job)
        .where(Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING.value)
        .values(step=step, total_steps=func.coalesce(total_steps, Job.total_steps))
        .returning(Job)
        .execution_options(populate_existing=True)
    )
    if job is None:
        state = tx.scalar(select(Job.state).where(Job.id == job_id))
        raise LostError(f"{job_id}: attempt {attempt} lost it", details={"state": state})
    worker_id = tx.scalar(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.attempt == attempt)
        .values(lease_expires_at=_in(ttl_seconds), last_step=step, device_seconds=device_seconds)
        .returning(Attempt.worker_id)
    )
    events.add_metrics(tx, job_id, attempt, points)
    for message, data in notes:
        events.add(tx, job, message, actor=str(worker_id), kind="metrics", data=data)


def close(tx: Session, job_id: str, attempt: int, outcome: str) -> None:
    """Close the books of an attempt: its slot counts as free from here on."""
    tx.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.attempt == attempt, Attempt.ended_at.is_(None))
        .values(ended_at=_NOW, outcome=outcome)
    )
    total = select(func.coalesce(func.sum(Attempt.device_seconds), 0.0)).where(
        Attempt.job_id == job_id
    )
    tx.execute(update(Job).where(Job.id == job_id).values(device_seconds=total.scalar_subquery()))


def publish(
    tx: Session, job_id: str, attempt: int, *, worker_id: str, tokens: int, adapter: Adapter
) -> None:
    """The commit point of a job: adapter row, attempt and job succeeded, events; or nothing.

    Raises: LostError when the attempt does not own the job (any more).
    """
    job = jobs.move(
        tx,
        job_id,
        "succeed",
        actor=worker_id,
        attempt=attempt,
        message=f"New fine-tuned model created: {adapter.name}",
        trained_tokens=tokens,
    )
    tx.add(adapter)
    close(tx, job_id, attempt, "succeeded")
    events.add(tx, job, "The job has successfully completed", actor=worker_id)


def fail(
    tx: Session, job_id: str, attempt: int, *, worker_id: str, code: str, message: str
) -> None:
    """End a running job as failed; for what trying again cannot mend.

    Raises: LostError.
    """
    jobs.move(
        tx,
        job_id,
        "fail",
        actor=worker_id,
        attempt=attempt,
        level="error",
        message=message,
        error_code=code,
        error_message=message,
    )
    close(tx, job_id, attempt, "failed")


def release(
    tx: Session,
    job_id: str,
    attempt: int,
    *,
    actor: str,
    reason: str,
    counts: bool,
    most_failures: int = 3,
) -> bool:
    """Hand a running job back to the queue; with `counts` it costs one of its failures.

    A job that has used up its failures is failed instead: then the answer is False.
    Raises: LostError.
    """
    failures = tx.scalar(select(Job.failures).where(Job.id == job_id)) or 0
    outcome = "lost" if counts else "released"
    spent = counts and failures + 1 >= most_failures
    if spent:
        jobs.move(
            tx,
            job_id,
            "fail",
            actor=actor,
            attempt=attempt,
            level="error",
            message=f"Given up after {failures + 1} tries: {reason}",
            error_code="attempts_exhausted",
            error_message=f"given up after {failures + 1} tries: {reason}",
            failures=failures + 1,
        )
    else:
        jobs.move(
            tx,
            job_id,
            "requeue",
            actor=actor,
            attempt=attempt,
            level="warn",
            message=f"Back in the queue: {reason}",
            failures=failures + (1 if counts else 0),
        )
    close(tx, job_id, attempt, outcome)
    return not spent


def rescue(tx: Session, *, limit: int = 100) -> list[str]:
    """Take back what nobody holds: expired leases, wake-ups past their deadline, open books of
    attempts whose job has moved on. Returns the ids of the jobs that are queued again."""
    back: list[str] = []
    # Both rows are locked: what PostgreSQL locks it reads anew, so that a lease renewed since this
    # statement began is seen as it is.
    expired = tx.execute(
        select(Job.id, Job.attempt)
        .join(Attempt, (Attempt.job_id == Job.id) & (Attempt.attempt == Job.attempt))
        .where(Job.state == JobState.RUNNING.value, Attempt.lease_expires_at < _NOW)
        .limit(limit)
        .with_for_update(of=(Job, Attempt), skip_locked=True)
    ).all()
    for job_id, attempt in expired:
        queued = release(
            tx,
            job_id,
            attempt,
            actor="scheduler",
            reason="its worker has not been heard of",
            counts=True,
        )
        if queued:
            back.append(job_id)
        crash.point("reaper_mid_batch")
    unclaimed = tx.execute(
        select(Job.id, Job.attempt)
        .where(Job.state == JobState.DISPATCHED.value, Job.dispatch_deadline < _NOW)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    for job_id, attempt in unclaimed:
        jobs.move(
            tx,
            job_id,
            "undispatch",
            actor="scheduler",
            attempt=attempt,
            message="No worker took it in time: back in the queue",
        )
        close(tx, job_id, attempt, "unclaimed")
        back.append(job_id)
    stale = (
        select(Attempt.job_id, Attempt.attempt)
        .join(Job, Job.id == Attempt.job_id)
        .where(
            Attempt.ended_at.is_(None),
            (Attempt.attempt < Job.attempt)
            | Job.state.not_in([JobState.RUNNING.value, JobState.DISPATCHED.value]),
            func.coalesce(Attempt.lease_expires_at, Attempt.dispatched_at) < _NOW,
        )
        .limit(limit)
    )
    for job_id, attempt in tx.execute(stale).all():
        close(tx, job_id, attempt, "left")
    return back
