"""Jobs: created, looked up, moved. `move` is the one door through which a state changes."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import func, select, tuple_, update
from sqlalchemy.orm import Session

from manylora import keys
from manylora.errors import LostError, NotFoundError, StateError
from manylora.ledger import events, webhooks
from manylora.ledger.states import FINAL, MOVES, JobState
from manylora.ledger.tables import Attempt, Job


def create(tx: Session, **columns: Any) -> Job:
    """Insert a job in `validating_files` and its first event.

    With an `idempotency_key` already used by the tenant, that first job is returned instead.
    """
    key = columns.get("idempotency_key")
    if key is not None:
        same = Job.tenant_id == columns["tenant_id"], Job.idempotency_key == key
        tx.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(key, 0))))
        first = tx.scalar(select(Job).where(*same))
        if first is not None:
            return first
    job = Job(
        id=keys.job_id(),
        state=JobState.VALIDATING.value,
        attempt=0,
        failures=0,
        step=0,
        device_seconds=0.0,
        **columns,
    )
    tx.add(job)
    tx.flush()
    tx.refresh(job)
    events.add(
        tx, job, f"Created fine-tuning job: {job.id}", actor="api", to_state=JobState.VALIDATING
    )
    return job


def get(tx: Session, tenant_id: uuid.UUID, job_id: str) -> Job:
    """Raises: NotFoundError for none such or one of another tenant."""
    row = tx.scalar(select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id))
    if row is None:
        raise NotFoundError(f"no job {job_id}", param="fine_tuning_job_id")
    return row


def page(
    tx: Session,
    tenant_id: uuid.UUID,
    *,
    after: str | None,
    limit: int,
    metadata: dict[str, str] | None = None,
) -> tuple[list[Job], bool]:
    """Jobs of a tenant, newest first, and whether more follow."""
    query = select(Job).where(Job.tenant_id == tenant_id)
    if metadata:
        query = query.where(Job.job_metadata.contains(metadata))
    if after:
        mark = get(tx, tenant_id, after)
        query = query.where(tuple_(Job.created_at, Job.id) < tuple_(mark.created_at, mark.id))
    rows = list(tx.scalars(query.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit + 1)))
    return rows[:limit], len(rows) > limit


def move(
    tx: Session,
    job_id: str,
    name: str,
    *,
    actor: str,
    message: str,
    attempt: int | None = None,
    level: str = "info",
    data: dict[str, Any] | None = None,
    **columns: Any,
) -> Job:
    """Make one legal move (see `states.MOVES`) by compare-and-set, with its event.

    `attempt` is the token; moves that need one are refused without it. `columns` are written in
    the same statement. A dispatch raises the attempt.
    Raises: LostError when no row matched: the job is elsewhere, or another attempt owns it.
    """
    sources, target, needs_token = MOVES[name]
    if needs_token and attempt is None:
        raise ValueError(f"the move {name!r} needs the attempt's token")
    # FOR UPDATE makes the state that the event names the very one the guard saw.
    before = tx.scalar(select(Job.state).where(Job.id == job_id).with_for_update())
    where = [Job.id == job_id, Job.state.in_([s.value for s in sources])]
    if attempt is not None:
        where.append(Job.attempt == attempt)
    if target is JobState.DISPATCHED:
        columns["attempt"] = Job.attempt + 1  # in this very statement: its event carries it too
    else:
        columns.setdefault("dispatch_deadline", None)
    if target in FINAL:
        columns.setdefault("finished_at", func.clock_timestamp())
    if target is JobState.QUEUED:
        columns.setdefault("queued_at", func.coalesce(Job.queued_at, func.clock_timestamp()))
    moved = tx.scalar(
        update(Job)
        .where(*where)
        .values(state=target.value, **columns)
        .returning(Job)
        .execution_options(populate_existing=True)
    )
    if moved is None:
        raise LostError(
            f"{job_id}: cannot {name} from {before or 'nothing'}",
            details={"state": before, "attempt": attempt},
        )
    events.add(
        tx,
        moved,
        message,
        actor=actor,
        level=level,
        data=data,
        from_state=before,
        to_state=target.value,
    )
    if target in FINAL:
        webhooks.announce(tx, moved)
    return moved


def cancel(tx: Session, tenant_id: uuid.UUID, job_id: str) -> Job:
    """Cancel a job: it is `cancelled` at once; a worker on it finds its token void and leaves.

    Raises: NotFoundError; StateError when the job is over.
    """
    job = get(tx, tenant_id, job_id)
    if job.state in FINAL:
        raise StateError(
            f"{job_id} is {job.state} already and cannot be cancelled",
            code="invalid_job_state",
            param="fine_tuning_job_id",
        )
    try:
        return move(tx, job_id, "cancel", actor="tenant", message="The job was cancelled")
    except LostError as lost:
        raise StateError(f"{job_id} ended just now", code="invalid_job_state") from lost


def attempts(tx: Session, job_id: str) -> list[Attempt]:
    """Every try of a job, in order."""
    return list(
        tx.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.attempt))
    )
