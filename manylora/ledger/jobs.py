"""Jobs: created, looked up, moved. `move` is the one door through which a state changes."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, insert, select, tuple_, update
from sqlalchemy.orm import Session

from manylora import keys
from manylora.errors import LostError, NotFoundError, StateError
from manylora.ledger import events, webhooks
from manylora.ledger.compare import swap, swap_all
from manylora.ledger.moves import MOVES, PAUSE, RESUME
from manylora.ledger.states import FINAL, JobState
from manylora.ledger.tables import Attempt, Event, Job


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
    query = select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id)
    row = tx.scalar(query, execution_options={"populate_existing": True})
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
    message: str | None = None,
    attempt: int | None = None,
    level: str | None = None,
    data: dict[str, Any] | None = None,
    **given: Any,
) -> Job:
    """Make one legal move (see `moves.MOVES`) by compare-and-set, with its event.

    `attempt` is the token; moves that need one are refused without it. `given` is what the move's
    guards and columns ask for. `message` takes the place of the line the move has of its own.
    Raises: LostError when no row matched: the job is elsewhere, another attempt owns it, or a
    guard does not hold.
    """
    return first(
        tx,
        job_id,
        (name,),
        actor=actor,
        message=message,
        attempt=attempt,
        level=level,
        data=data,
        **given,
    )[1]


def first(
    tx: Session,
    job_id: str,
    names: Sequence[str],
    *,
    actor: str,
    message: str | None = None,
    attempt: int | None = None,
    level: str | None = None,
    data: dict[str, Any] | None = None,
    **given: Any,
) -> tuple[str, Job]:
    """Make the first of these moves that is legal and whose guards hold; its name, and the job.

    Raises: LostError when none is.
    """
    state = select(Job.state).where(Job.id == job_id)
    quiet = len(names) == 1 and not (message or MOVES[names[0]].says)
    # FOR UPDATE makes the state that the event names the very one the guards saw.
    before = None if quiet else tx.scalar(state.with_for_update())
    for name in names:
        made = MOVES[name]
        if made.token and attempt is None:
            raise ValueError(f"the move {name!r} needs the attempt's token")
        moved = swap(tx, made, job_id, attempt, given)
        if moved is None:
            continue
        told = message or (made.says.format_map(given | {"step": moved.step}) if made.says else "")
        if told:
            events.add(
                tx,
                moved,
                told,
                actor=actor,
                level=level or made.level,
                data=data,
                from_state=before if made.target else None,
                to_state=made.target.value if made.target else None,
            )
        if made.target in FINAL:
            webhooks.announce(tx, moved)
        return name, moved
    if quiet:
        before = tx.scalar(state)
    raise LostError(
        f"{job_id}: cannot {names[-1]} from {before or 'nothing'}",
        details={"state": before, "attempt": attempt},
    )


def dispatch_all(
    tx: Session, job_ids: Sequence[str], *, queue: str, deadline: float, resend: float
) -> dict[str, int]:
    """The move `dispatch` of many jobs at once, with their events; {job: attempt} of those that
    were still queued and due. The others are no error: they were cancelled or paused meanwhile."""
    made = MOVES["dispatch"]
    given = {"queue": queue, "deadline": deadline, "resend": resend}
    moved = swap_all(tx, made, job_ids, given)
    if moved:
        told = {
            "level": made.level,
            "type": "message",
            "message": made.says,
            "from_state": JobState.QUEUED.value,
            "actor": "scheduler",
        }
        tx.execute(
            insert(Event),
            [
                told
                | {
                    "id": keys.event_id(),
                    "job_id": job_id,
                    "tenant_id": tenant_id,
                    "attempt": attempt,
                    "to_state": state,
                }
                for job_id, tenant_id, attempt, state in moved
            ],
        )
    return {job_id: attempt for job_id, _, attempt, _ in moved}


def cancel(tx: Session, tenant_id: uuid.UUID, job_id: str) -> Job:
    """Cancel a job: it is `cancelled` at once; a worker on it finds its token void and leaves.

    Raises: NotFoundError; StateError when the job is over.
    """
    return _asked(tx, tenant_id, job_id, ("cancel",), "cancelled")


def pause(tx: Session, tenant_id: uuid.UUID, job_id: str) -> Job:
    """Hold a job back. One that runs is asked to: at its next checkpoint it is paused and gives
    its slot back. One that is paused, or asked to, stays as it is.

    Raises: NotFoundError; StateError when the job is over.
    """
    return _asked(tx, tenant_id, job_id, PAUSE, "paused")


def resume(tx: Session, tenant_id: uuid.UUID, job_id: str) -> Job:
    """Let a paused job go on, at the end of the queue; one that is asked to pause runs on. One
    that is not paused stays as it is.

    Raises: NotFoundError; StateError when the job is over.
    """
    return _asked(tx, tenant_id, job_id, RESUME, "resumed")


def _asked(tx: Session, tenant_id: uuid.UUID, job_id: str, names: Sequence[str], what: str) -> Job:
    get(tx, tenant_id, job_id)
    try:
        return first(tx, job_id, names, actor="tenant")[1]
    except LostError:
        job = get(tx, tenant_id, job_id)  # held since, so it is as the guards saw it
        if job.state in FINAL:
            raise StateError(
                f"{job_id} is {job.state} already and cannot be {what}",
                code="invalid_job_state",
                param="fine_tuning_job_id",
            ) from None
        return job


def postpone(tx: Session, job_id: str, attempt: int, seconds: float) -> None:
    """Have a job that was just handed back not sent out again before so many seconds."""
    if seconds > 0:
        tx.execute(
            update(Job)
            .where(Job.id == job_id, Job.attempt == attempt, Job.state == JobState.QUEUED.value)
            .values(not_before=func.clock_timestamp() + dt.timedelta(seconds=seconds))
        )


def attempts(tx: Session, job_id: str) -> list[Attempt]:
    """Every try of a job, in order."""
    return list(
        tx.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.attempt))
    )
