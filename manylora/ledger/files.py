"""Files (uploaded datasets) of a tenant."""

from __future__ import annotations

import uuid

from sqlalchemy import func, select, tuple_, update
from sqlalchemy.orm import Session

from manylora import keys
from manylora.errors import NotFoundError, StateError
from manylora.ledger.states import FINAL
from manylora.ledger.tables import File, Job


def add(
    tx: Session, tenant_id: uuid.UUID, *, filename: str, purpose: str, size: int, sha256: str
) -> File:
    """Record an upload whose bytes already lie under `keys.dataset_key`."""
    row = File(
        id=keys.file_id(),
        tenant_id=tenant_id,
        filename=filename,
        purpose=purpose,
        bytes=size,
        sha256=sha256,
    )
    tx.add(row)
    tx.flush()
    tx.refresh(row)
    return row


def get(tx: Session, tenant_id: uuid.UUID, file_id: str) -> File:
    """Raises: NotFoundError for none such, one of another tenant, or one deleted."""
    row = tx.scalar(
        select(File).where(
            File.id == file_id, File.tenant_id == tenant_id, File.deleted_at.is_(None)
        )
    )
    if row is None:
        raise NotFoundError(f"no file {file_id}", hint="upload it first", param="file_id")
    return row


def page(
    tx: Session,
    tenant_id: uuid.UUID,
    *,
    after: str | None,
    limit: int,
    purpose: str | None = None,
    ascending: bool = False,
) -> tuple[list[File], bool]:
    """Files in order of creation (newest first unless `ascending`), and whether more follow."""
    query = select(File).where(File.tenant_id == tenant_id, File.deleted_at.is_(None))
    if purpose:
        query = query.where(File.purpose == purpose)
    place = tuple_(File.created_at, File.id)
    if after:
        mark = get(tx, tenant_id, after)
        here = tuple_(mark.created_at, mark.id)
        query = query.where(place > here if ascending else place < here)
    order = (File.created_at, File.id) if ascending else (File.created_at.desc(), File.id.desc())
    rows = list(tx.scalars(query.order_by(*order).limit(limit + 1)))
    return rows[:limit], len(rows) > limit


def delete(tx: Session, tenant_id: uuid.UUID, file_id: str) -> tuple[File, bool]:
    """Delete a file; the second value says whether its bytes are needed by no other file.

    Raises: NotFoundError; StateError while a job that is not over needs it.
    """
    row = get(tx, tenant_id, file_id)
    needed = tx.scalar(
        select(Job.id)
        .where(
            Job.tenant_id == tenant_id,
            (Job.training_file == file_id) | (Job.validation_file == file_id),
            Job.state.not_in([state.value for state in FINAL]),
        )
        .limit(1)
    )
    if needed:
        raise StateError(f"{file_id} is needed by {needed}", hint="cancel the job or wait for it")
    tx.execute(update(File).where(File.id == file_id).values(deleted_at=func.clock_timestamp()))
    shared = tx.scalar(
        select(File.id)
        .where(
            File.tenant_id == tenant_id,
            File.sha256 == row.sha256,
            File.id != file_id,
            File.deleted_at.is_(None),
        )
        .limit(1)
    )
    return row, shared is None
