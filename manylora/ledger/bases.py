"""Registered bases."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from manylora.errors import ConflictError, NotFoundError, UnknownBaseError
from manylora.ledger.states import FINAL
from manylora.ledger.tables import Adapter, Base, Job, Worker


def get(tx: Session, name: str, *, held: bool = False) -> Base:
    """A base that is ready to be trained on; `held` until the transaction ends, so that it is not
    removed before a job that names it is there.

    Raises: UnknownBaseError naming those that are registered.
    """
    query = select(Base).where(Base.name == name)
    if held:
        query = query.with_for_update(read=True, key_share=True)
    row = tx.scalar(query, execution_options={"populate_existing": True})
    if row is None or row.state != "ready":
        known = list(tx.scalars(select(Base.name).where(Base.state == "ready").order_by(Base.name)))
        raise UnknownBaseError(
            f'no base is called "{name}"',
            param="model",
            hint="registered: "
            + (", ".join(known) or "none yet")
            + "; register one: manylora base add NAME --from …",
        )
    return row


def ready(tx: Session) -> list[Base]:
    """All bases that can be trained on, by name."""
    return list(tx.scalars(select(Base).where(Base.state == "ready").order_by(Base.name)))


def start(tx: Session, **columns: Any) -> Base:
    """Begin (or begin again) a registration; the files are uploaded next.

    Raises: ConflictError when the name stands for another fingerprint already.
    """
    row = tx.get(Base, columns["name"], with_for_update=True)
    if row is None:
        row = Base(**columns, state="uploading")
        tx.add(row)
    elif row.state == "ready" and row.fingerprint != columns["fingerprint"]:
        raise ConflictError(
            f'"{row.name}" is registered with other files ({row.fingerprint[:12]})',
            hint="choose another name, or `manylora base remove` first",
        )
    elif row.state != "ready":
        for column, value in columns.items():
            setattr(row, column, value)
    tx.flush()
    return row


def finish(tx: Session, name: str) -> Base:
    """Mark a base whose files were all found in the store as ready."""
    row = tx.get(Base, name, with_for_update=True)
    if row is None:
        raise NotFoundError(f'no base "{name}" is being registered')
    row.state = "ready"
    tx.flush()
    tx.refresh(row)
    return row


def remove(tx: Session, name: str) -> Base:
    """Forget a base: no new job can name it. Adapters trained on it stay, and so does its row,
    which they and the history of their jobs name.

    Raises: NotFoundError; ConflictError while a job that is not over needs it.
    """
    row = tx.get(Base, name, with_for_update=True)
    if row is None:
        raise NotFoundError(f'no base is called "{name}"')
    open_jobs = tx.scalar(
        select(func.count())
        .select_from(Job)
        .where(Job.base == name, Job.state.not_in([s.value for s in FINAL]))
    )
    if open_jobs:
        jobs = "1 job needs" if open_jobs == 1 else f"{open_jobs} jobs need"
        raise ConflictError(f'{jobs} "{name}" still', hint="wait for them or cancel them")
    used = tx.scalar(select(func.count()).select_from(Job).where(Job.base == name))
    adapters = tx.scalar(select(func.count()).select_from(Adapter).where(Adapter.base == name))
    tx.execute(update(Worker).where(Worker.assigned_base == name).values(assigned_base=None))
    if used or adapters:
        row.state = "uploading"  # kept for the history that names it; no job can take it
    else:
        tx.execute(delete(Base).where(Base.name == name))
    return row
