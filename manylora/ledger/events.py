"""Events and metric points of jobs: append-only."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from manylora import keys
from manylora.errors import NotFoundError
from manylora.ledger.tables import Event, Job, Metric


def add(
    tx: Session,
    job: Job,
    message: str,
    *,
    actor: str,
    level: str = "info",
    data: dict[str, Any] | None = None,
    kind: str = "message",
    from_state: str | None = None,
    to_state: str | None = None,
) -> None:
    """Append an event to a job's history."""
    tx.add(
        Event(
            id=keys.event_id(),
            tenant_id=job.tenant_id,
            job_id=job.id,
            level=level,
            type=kind,
            message=message,
            data=data,
            attempt=job.attempt,
            from_state=from_state,
            to_state=to_state,
            actor=actor,
        )
    )


def page(
    tx: Session, tenant_id: uuid.UUID, job_id: str, *, after: str | None, limit: int
) -> tuple[list[Event], bool]:
    """Events of a job, newest first, after the one called `after`; and whether there are more.

    Raises: NotFoundError for no such job or one of another tenant.
    """
    query = select(Event).where(Event.job_id == job_id, Event.tenant_id == tenant_id)
    if after is not None:
        seq = tx.scalar(select(Event.seq).where(Event.id == after, Event.job_id == job_id))
        query = query.where(Event.seq < (seq if seq is not None else 0))
    rows = list(tx.scalars(query.order_by(Event.seq.desc()).limit(limit + 1)))
    if not rows:
        mine = select(Job.id).where(Job.id == job_id, Job.tenant_id == tenant_id)
        if tx.scalar(mine) is None:
            raise NotFoundError(f"no job {job_id}", param="fine_tuning_job_id")
    return rows[:limit], len(rows) > limit


def add_metrics(
    tx: Session, job_id: str, attempt: int, points: list[tuple[int, dict[str, Any]]]
) -> None:
    """Write metric points; a step trained again overwrites its older point.

    The caller has renewed the attempt's lease in the same transaction.
    """
    if not points:
        return
    statement = insert(Metric).values(
        [
            {"job_id": job_id, "step": step, "attempt": attempt, "data": data}
            for step, data in points
        ]
    )
    tx.execute(
        statement.on_conflict_do_update(
            index_elements=[Metric.job_id, Metric.step],
            set_={"attempt": statement.excluded.attempt, "data": statement.excluded.data},
        )
    )


def metrics(tx: Session, job_id: str, *, after_step: int = 0, limit: int = 5000) -> list[Metric]:
    """A job's metric points in order of their steps."""
    return list(
        tx.scalars(
            select(Metric)
            .where(Metric.job_id == job_id, Metric.step > after_step)
            .order_by(Metric.step)
            .limit(limit)
        )
    )


def thin(tx: Session, job_id: str, most: int = 1000) -> None:
    """Leave about so many metric points of a job that has ended, evenly spaced; those with a
    validation loss and the last one stay."""
    count, last = tx.execute(
        select(func.count(), func.max(Metric.step)).where(Metric.job_id == job_id)
    ).one()
    if count > most:
        every = -(-count // most)
        tx.execute(
            delete(Metric).where(
                Metric.job_id == job_id,
                Metric.step % every != 0,
                Metric.step != last,
                Metric.data["valid_loss"].is_(None),
            )
        )
