"""Leases: claim, renew, release, rescue. The attempt's number is the fencing token; time only
decides liveness, and it is the database's time. The guards stand in `moves.py`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from manylora import crash
from manylora.ledger import events, jobs
from manylora.ledger.compare import NOW, holds
from manylora.ledger.compare import close as close
from manylora.ledger.moves import (
    COUNT,
    HAND_BACK,
    MOST_FAILURES,
    MOST_PREEMPTIONS,
    MOVES,
    RESCUE,
    Now,
    backoff,
)
from manylora.ledger.states import JobState
from manylora.ledger.tables import Adapter, Attempt, Job


def dispatch(
    tx: Session,
    job_id: str,
    *,
    queue: str,
    deadline_seconds: float,
    resend_seconds: float | None = None,
) -> int:
    """Raise a queued job's attempt and mark it dispatched; returns the new attempt.

    Its wake-up may be sent again (`resend`) after `resend_seconds`, by default never.
    Raises: LostError when it is not queued any more, or not to be sent out yet.
    """
    job = jobs.move(
        tx,
        job_id,
        "dispatch",
        actor="scheduler",
        queue=queue,
        deadline=deadline_seconds,
        resend=deadline_seconds if resend_seconds is None else resend_seconds,
    )
    return job.attempt


def resend(tx: Session, *, resend_seconds: float, limit: int = 100) -> list[tuple[str, str, int]]:
    """(queue, job, attempt) of the wake-ups to send again: out for a while, nobody took them, and
    their deadline is not over. A wake-up that comes twice claims once."""
    again = []
    for job_id, attempt, queue in _candidates(tx, "resend", limit):
        jobs.move(tx, job_id, "resend", actor="scheduler", attempt=attempt, resend=resend_seconds)
        again.append((queue, job_id, attempt))
    return again


def claim(tx: Session, job_id: str, attempt: int, *, worker_id: str, ttl_seconds: float) -> Job:
    """Take the lease of a dispatched attempt.

    Raises: LostError when someone has it, or the wake-up is stale, repeated or forged.
    """
    return jobs.move(
        tx,
        job_id,
        "claim",
        actor=worker_id,
        attempt=attempt,
        worker_id=worker_id,
        ttl=ttl_seconds,
    )


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
) -> str | None:
    """Extend the lease and report progress: step, device-seconds of this attempt, metric points,
    and `notes` (message, data) for the job's history. Returns what is wished of the worker: None,
    or "pause" or "preempt", which both mean: checkpoint, leave the trainer, `release`.

    Raises: LostError when the attempt is no longer the job's, or the job is no longer running
    (cancelled, for one): leave the slot.
    """
    job = jobs.move(
        tx,
        job_id,
        "renew",
        actor="",
        attempt=attempt,
        ttl=ttl_seconds,
        step=step,
        device_seconds=device_seconds,
        total_steps=total_steps,
    )
    events.add_metrics(tx, job_id, attempt, points)
    if notes:
        holder = tx.scalar(
            select(Attempt.worker_id).where(Attempt.job_id == job_id, Attempt.attempt == attempt)
        )
        for message, data in notes:
            events.add(tx, job, message, actor=str(holder), kind="metrics", data=data)
    return job.wish


def note(
    tx: Session,
    job: Job,
    message: str,
    *,
    actor: str,
    level: str = "info",
    data: dict[str, Any] | None = None,
) -> None:
    """A line in the history of a job in work, as its worker sees it.

    Raises: LostError when the attempt does not own the job (any more): it has no say then.
    """
    jobs.move(tx, job.id, "record", actor="", attempt=job.attempt)
    events.add(tx, job, message, actor=actor, level=level, data=data)


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
        tokens=tokens,
        adapter=adapter.name,
    )
    tx.add(adapter)
    events.add(tx, job, "The job has successfully completed", actor=worker_id)


def fail(
    tx: Session,
    job_id: str,
    attempt: int,
    *,
    worker_id: str,
    code: str,
    message: str,
    kind: str = "user",
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
        told=message,
        code=code,
        kind=kind,
    )


def release(
    tx: Session,
    job_id: str,
    attempt: int,
    *,
    actor: str,
    reason: str,
    counts: bool,
    kind: str = "lost",
    most_failures: int | None = None,
    code: str = "attempts_exhausted",
) -> bool:
    """Hand a running job back: to the queue, or to where it was wished (paused).

    With `counts` it costs one of its failures of that kind: "lost" (worker or trainer died), "oom"
    (no memory), "infra" (store, disk or the like; sent out again after a while). A job that has
    used them up (`most_failures`, by default `moves.MOST_FAILURES`) is failed with `code`
    instead: then the answer is False. Without `counts` (drain, pause, preemption) nothing counts.
    Raises: LostError.
    """
    if not counts:
        jobs.first(tx, job_id, HAND_BACK, actor=actor, attempt=attempt, reason=reason)
        return True
    return _count(tx, job_id, attempt, COUNT, actor, reason, kind, most_failures, code)


def _count(
    tx: Session,
    job_id: str,
    attempt: int,
    names: Sequence[str],
    actor: str,
    reason: str,
    kind: str,
    most_failures: int | None,
    code: str,
) -> bool:
    most = MOST_FAILURES[kind] if most_failures is None else most_failures
    column = getattr(Job, f"failures_{kind}")
    failures = tx.scalar(select(column).where(Job.id == job_id).with_for_update()) or 0
    tries = "1 try" if failures == 0 else f"{failures + 1} tries"
    name, _ = jobs.first(
        tx,
        job_id,
        names,
        actor=actor,
        attempt=attempt,
        kind=kind,
        allowed=most - 1,
        wait=backoff(kind, failures),
        reason=reason,
        code=code,
        told=f"Given up after {tries}: {reason}",
    )
    return name != names[0]


def preempt(
    tx: Session, job_id: str, attempt: int, *, most_preemptions: int = MOST_PREEMPTIONS
) -> None:
    """Ask a running job to make room: its worker checkpoints and releases it.

    Raises: LostError when it is not running that attempt, is asked for something already, or has
    made room often enough.
    """
    jobs.move(
        tx,
        job_id,
        "preempt",
        actor="scheduler",
        attempt=attempt,
        most_preemptions=most_preemptions,
    )


def held(tx: Session) -> list[tuple[str, int, datetime | None]]:
    """(job, attempt, end) of every lease there is."""
    rows = tx.execute(
        select(Job.id, Job.attempt, Attempt.lease_expires_at)
        .join(Attempt, (Attempt.job_id == Job.id) & (Attempt.attempt == Job.attempt))
        .where(Job.state == JobState.RUNNING)
    )
    return [(job_id, attempt, end) for job_id, attempt, end in rows]


def rescue(
    tx: Session,
    *,
    limit: int = 100,
    leases: bool = True,
    only: Collection[tuple[str, int]] | None = None,
    most_failures: int | None = None,
) -> list[str]:
    """Take back what nobody holds: expired leases, wake-ups past their deadline, open books of
    attempts whose job has moved on. Returns the ids of the jobs that are queued again.

    Without `leases`, leases are let be, expired or not: so soon after the database or the
    scheduler was away, workers have not had the time to renew. With `only`, no lease but those of
    these jobs and attempts is taken.
    """
    back: list[str] = []
    for job_id, attempt, _ in _candidates(tx, "rescue", limit) if leases else ():
        if only is not None and (job_id, attempt) not in only:
            continue
        if _count(
            tx,
            job_id,
            attempt,
            RESCUE,
            "scheduler",
            "its worker has not been heard of",
            "lost",
            most_failures,
            "attempts_exhausted",
        ):
            back.append(job_id)
        crash.point("reaper_mid_batch")
    for job_id, attempt, _ in _candidates(tx, "undispatch", limit):
        jobs.move(tx, job_id, "undispatch", actor="scheduler", attempt=attempt)
        back.append(job_id)
    if leases:
        _close_left(tx, limit)
    return back


def _candidates(tx: Session, name: str, limit: int) -> list[tuple[str, int, str]]:
    """(job, attempt, queue) of the jobs in a state that move may start from whose guards on time
    hold. Both rows are locked: what PostgreSQL locks it reads anew, so that a lease renewed since
    this statement began is seen as it is."""
    made = MOVES[name]
    timely = [guard for guard in made.guards if isinstance(guard.value, Now)]
    rows = tx.execute(
        select(Job.id, Job.attempt, Attempt.queue)
        .join(Attempt, (Attempt.job_id == Job.id) & (Attempt.attempt == Job.attempt))
        .where(
            Job.state.in_([state.value for state in made.sources]),
            *(holds(guard, {}, joined=True) for guard in timely),
        )
        .limit(limit)
        .with_for_update(of=(Job, Attempt), skip_locked=True)
    )
    return [(job_id, attempt, queue) for job_id, attempt, queue in rows]


def _close_left(tx: Session, limit: int) -> None:
    """Close the books of attempts whose job has moved on and whose lease is over."""
    stale = (
        select(Attempt.job_id, Attempt.attempt)
        .join(Job, Job.id == Attempt.job_id)
        .where(
            Attempt.ended_at.is_(None),
            (Attempt.attempt < Job.attempt)
            | Job.state.not_in([JobState.RUNNING.value, JobState.DISPATCHED.value]),
            func.coalesce(Attempt.lease_expires_at, Attempt.dispatched_at) < NOW,
        )
        .limit(limit)
    )
    for job_id, attempt in tx.execute(stale).all():
        close(tx, job_id, attempt, "left")
