"""Compare-and-set: the SQL of a move, made from the table of moves."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, insert, or_, select, update
from sqlalchemy.orm import Session

from manylora.ledger.moves import After, First, Given, Guard, Move, Now, Plus, named
from manylora.ledger.tables import Attempt, Job

NOW = func.clock_timestamp()
_BOOKS = "attempts."


def soon(seconds: float) -> Any:
    """The database's time and that many seconds."""
    return NOW + dt.timedelta(seconds=seconds)


def holds(guard: Guard, given: Mapping[str, Any], *, joined: bool = False) -> ColumnElement[bool]:
    """The condition on the row of a job that a guard is; `joined` where its attempt is joined."""
    name = named(guard.column, given)
    if not name.startswith(_BOOKS):
        return _compared(getattr(Job, name), guard, given)
    condition = _compared(getattr(Attempt, name.removeprefix(_BOOKS)), guard, given)
    if joined:
        return condition
    mine = select(Attempt.attempt).where(
        Attempt.job_id == Job.id, Attempt.attempt == Job.attempt, condition
    )
    return mine.correlate(Job).exists()


def _compared(column: Any, guard: Guard, given: Mapping[str, Any]) -> ColumnElement[bool]:
    value = guard.value
    if isinstance(value, Now):
        value = NOW
    elif isinstance(value, Given):
        value = given[value.name]
    condition: ColumnElement[bool]
    if guard.how == "is":
        condition = column.is_not_distinct_from(value)
    elif guard.how == "is not":
        condition = column.is_distinct_from(value)
    elif guard.how == "<":
        condition = column < value
    elif guard.how == ">=":
        condition = column >= value
    else:
        condition = or_(column.is_(None), column <= value)
    return condition


def written(
    table: type[Job] | type[Attempt], sets: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Column -> value, for an UPDATE or an INSERT of that table."""
    values: dict[str, Any] = {}
    for column, what in sets.items():
        name = named(column, given)
        own = getattr(table, name)
        if isinstance(what, Now):
            values[name] = NOW
        elif isinstance(what, First):
            values[name] = func.coalesce(own, NOW)
        elif isinstance(what, Plus):
            values[name] = own + what.by
        elif isinstance(what, After):
            values[name] = soon(given[what.name])
        elif isinstance(what, Given):
            value = given.get(what.name) if what.keep else given[what.name]
            values[name] = func.coalesce(value, own) if what.keep else value
        else:
            values[name] = what
    return values


def swap(
    tx: Session, move: Move, job_id: str, attempt: int | None, given: Mapping[str, Any]
) -> Job | None:
    """Make the move in one UPDATE and keep the attempt's books; None when no row matched.

    The caller holds the job's row where a guard looks at the attempt, so that it cannot change in
    between.
    """
    where = [Job.id == job_id, Job.state.in_([state.value for state in sorted(move.sources)])]
    if move.token:
        where.append(Job.attempt == attempt)
    where += [holds(guard, given) for guard in move.guards]
    values = written(Job, move.sets, given)
    if move.target is not None:
        values["state"] = move.target.value
    job = tx.scalar(
        update(Job)
        .where(*where)
        .values(values or {"state": Job.state})
        .returning(Job)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    if job is None:
        return None
    books = written(Attempt, move.books, given)
    if move.opens:
        tx.execute(insert(Attempt).values(job_id=job_id, attempt=job.attempt, **books))
    elif books:
        tx.execute(
            update(Attempt)
            .where(Attempt.job_id == job_id, Attempt.attempt == job.attempt)
            .values(books)
        )
    if move.outcome is not None:
        close(tx, job_id, job.attempt, named(move.outcome, given))
    return job


def swap_all(
    tx: Session, move: Move, job_ids: Sequence[str], given: Mapping[str, Any]
) -> list[tuple[str, uuid.UUID, int, str]]:
    """As `swap`, of many jobs in one statement; for moves without a token that open an attempt or
    write no books. (id, tenant, attempt, state) of those that were moved."""
    values = written(Job, move.sets, given)
    if move.target is not None:
        values["state"] = move.target.value
    moved = tx.execute(
        update(Job)
        .where(
            Job.id.in_(job_ids),
            Job.state.in_([state.value for state in sorted(move.sources)]),
            *(holds(guard, given) for guard in move.guards),
        )
        .values(values)
        .returning(Job.id, Job.tenant_id, Job.attempt, Job.state)
        .execution_options(synchronize_session=False)
    ).all()
    if move.opens and moved:
        books = written(Attempt, move.books, given)
        tx.execute(
            insert(Attempt), [{"job_id": row.id, "attempt": row.attempt, **books} for row in moved]
        )
    return [(row.id, row.tenant_id, row.attempt, row.state) for row in moved]


def close(tx: Session, job_id: str, attempt: int, outcome: str) -> None:
    """Close the books of an attempt: its slot counts as free from here on."""
    tx.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.attempt == attempt, Attempt.ended_at.is_(None))
        .values(ended_at=NOW, outcome=outcome)
    )
    total = select(func.coalesce(func.sum(Attempt.device_seconds), 0.0)).where(
        Attempt.job_id == job_id
    )
    tx.execute(update(Job).where(Job.id == job_id).values(device_seconds=total.scalar_subquery()))
