"""Published adapters of a tenant."""

from __future__ import annotations

import uuid

from sqlalchemy import select
from sqlalchemy.orm import Session

from manylora.errors import ConflictError, NotFoundError
from manylora.ledger.tables import Adapter, Job


def find(tx: Session, tenant_id: uuid.UUID, name: str) -> Adapter:
    """An adapter by its full name, its job's id, or its suffix (the newest of that suffix).

    Raises: NotFoundError.
    """
    mine = select(Adapter).where(Adapter.tenant_id == tenant_id)
    row = tx.scalar(mine.where((Adapter.name == name) | (Adapter.job_id == name)))
    if row is None:
        row = tx.scalar(
            mine.join(Job, Job.id == Adapter.job_id)
            .where(Job.suffix == name)
            .order_by(Adapter.created_at.desc())
            .limit(1)
        )
    if row is not None:
        return row
    job = tx.scalar(
        select(Job)
        .where(Job.tenant_id == tenant_id, (Job.id == name) | (Job.suffix == name))
        .order_by(Job.created_at.desc())
        .limit(1)
    )
    if job is not None:
        raise ConflictError(
            f"{job.id} has no adapter: it is {job.state}",
            code="no_adapter",
            hint=f"manylora show {job.id}",
        )
    raise NotFoundError(f"no adapter {name}", hint="manylora adapters lists yours")


def of_job(tx: Session, job_id: str) -> Adapter | None:
    """The adapter a job published, if it has."""
    return tx.scalar(select(Adapter).where(Adapter.job_id == job_id))


def page(tx: Session, tenant_id: uuid.UUID, *, limit: int = 100) -> list[tuple[Adapter, Job]]:
    """A tenant's adapters with their jobs, newest first."""
    rows = tx.execute(
        select(Adapter, Job)
        .join(Job, Job.id == Adapter.job_id)
        .where(Adapter.tenant_id == tenant_id)
        .order_by(Adapter.created_at.desc(), Adapter.name)
        .limit(limit)
    )
    return [(adapter, job) for adapter, job in rows]
