"""Workers as they report themselves, and the base each is given."""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from manylora.ledger.tables import Attempt, Scheduler, Worker

_NOW = func.clock_timestamp()


def report(tx: Session, worker_id: str, **columns: Any) -> Worker:
    """Insert or refresh a worker's row and its heartbeat; returns the row as it is now."""
    statement = insert(Worker).values(id=worker_id, **columns)
    return tx.scalars(
        statement.on_conflict_do_update(
            index_elements=[Worker.id], set_={**columns, "heartbeat_at": _NOW}
        ).returning(Worker),
        execution_options={"populate_existing": True},
    ).one()


def alive(tx: Session, *, within_seconds: float) -> list[Worker]:
    """Workers heard of within that time that have not said goodbye."""
    return list(
        tx.scalars(
            select(Worker)
            .where(
                Worker.state != "gone",
                Worker.heartbeat_at > _NOW - dt.timedelta(seconds=within_seconds),
            )
            .order_by(Worker.id)
        )
    )


def assign(tx: Session, worker_id: str, base: str) -> None:
    """Give an unpinned worker a base."""
    tx.execute(
        update(Worker)
        .where(Worker.id == worker_id, Worker.pinned.is_(False))
        .values(assigned_base=base)
    )


def busy(tx: Session) -> dict[str, int]:
    """Open attempts per queue: slots taken or promised."""
    rows = tx.execute(
        select(Attempt.queue, func.count())
        .where(Attempt.ended_at.is_(None))
        .group_by(Attempt.queue)
    )
    return dict(rows.all())


def served_lately(
    tx: Session, fingerprint: str, numerics: dict[str, Any], within_seconds: float
) -> bool:
    """Whether a worker of those numerics held that base within that time."""
    return (
        tx.scalar(
            select(Worker.id)
            .where(
                Worker.fingerprint == fingerprint,
                Worker.facts["numerics"] == numerics,
                Worker.heartbeat_at > _NOW - dt.timedelta(seconds=within_seconds),
            )
            .limit(1)
        )
        is not None
    )


def tick(tx: Session, scheduler_id: str) -> None:
    """A scheduler's sign of life."""
    statement = insert(Scheduler).values(id=scheduler_id)
    tx.execute(
        statement.on_conflict_do_update(index_elements=[Scheduler.id], set_={"ticked_at": _NOW})
    )


def last_tick_age(tx: Session) -> float | None:
    """Seconds since any scheduler's last round; None when there never was one."""
    age = tx.scalar(
        select(func.extract("epoch", _NOW - func.max(Scheduler.ticked_at))).select_from(Scheduler)
    )
    return None if age is None else float(age)
