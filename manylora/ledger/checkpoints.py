"""Checkpoints of jobs: `state` rows to resume from, `epoch` rows with the adapter after an epoch.

A row is written after its objects, under the attempt's token; what it names is in the store, whole.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import delete, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from manylora import keys
from manylora.errors import NotFoundError
from manylora.ledger import jobs
from manylora.ledger.tables import Checkpoint, Job

Kind = Literal["state", "epoch"]
#: how many are kept of each kind, besides the best
KEPT: dict[Kind, int] = {"state": 2, "epoch": 3}


def add(
    tx: Session,
    job: Job,
    *,
    step: int,
    prefix: str,
    manifest_sha256: str,
    metrics: dict[str, Any],
    kind: Kind = "state",
    name: str | None = None,
) -> None:
    """Record a checkpoint whose manifest is in the store. One of the same kind and step of the same
    attempt is replaced, as its objects are.

    Raises: LostError when the attempt does not own the job any more.
    """
    jobs.move(tx, job.id, "record", actor="", attempt=job.attempt)
    statement = insert(Checkpoint).values(
        id=keys.checkpoint_id(),
        tenant_id=job.tenant_id,
        job_id=job.id,
        attempt=job.attempt,
        kind=kind,
        name=name,
        step=step,
        prefix=prefix,
        manifest_sha256=manifest_sha256,
        metrics=metrics,
    )
    tx.execute(
        statement.on_conflict_do_update(
            constraint="checkpoints_once",
            set_={"manifest_sha256": manifest_sha256, "metrics": metrics},
        )
    )


def of_job(tx: Session, job_id: str, kind: Kind = "state") -> list[Checkpoint]:
    """A job's checkpoints, newest step first."""
    return list(
        tx.scalars(
            select(Checkpoint)
            .where(Checkpoint.job_id == job_id, Checkpoint.kind == kind)
            .order_by(Checkpoint.step.desc(), Checkpoint.attempt.desc())
        )
    )


def spare(rows: Sequence[Checkpoint], kind: Kind) -> list[Checkpoint]:
    """Those of `rows` (newest first) that need not be kept: all but the last few and the best by
    validation loss."""
    judged = [row for row in rows if row.metrics.get("valid_loss") is not None]
    best = min(judged, key=lambda row: row.metrics["valid_loss"], default=None)
    return [row for row in rows[KEPT[kind] :] if row is not best]


def drop(tx: Session, job: Job, rows: Sequence[Checkpoint]) -> None:
    """Take back rows; their objects are for the caller to delete afterwards.

    Raises: LostError when the attempt does not own the job any more.
    """
    jobs.move(tx, job.id, "record", actor="", attempt=job.attempt)
    tx.execute(delete(Checkpoint).where(Checkpoint.id.in_([row.id for row in rows])))


def drop_states(tx: Session, job_id: str) -> None:
    """Take back all that an ended job could have resumed from."""
    tx.execute(delete(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.kind == "state"))


def page(
    tx: Session, tenant_id: uuid.UUID, job_id: str, *, after: str | None, limit: int
) -> tuple[list[Checkpoint], bool]:
    """The adapters of a job's epochs, newest first, and whether more follow.

    Raises: NotFoundError for no such job or checkpoint, or one of another tenant.
    """
    if tx.scalar(select(Job.id).where(Job.id == job_id, Job.tenant_id == tenant_id)) is None:
        raise NotFoundError(f"no job {job_id}", param="fine_tuning_job_id")
    place = tuple_(Checkpoint.step, Checkpoint.attempt)
    query = select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.kind == "epoch")
    if after is not None:
        mark = tx.scalar(query.where(Checkpoint.id == after))
        if mark is None:
            raise NotFoundError(f"no checkpoint {after}", param="after")
        query = query.where(place < (mark.step, mark.attempt))
    order = Checkpoint.step.desc(), Checkpoint.attempt.desc()
    rows = list(tx.scalars(query.order_by(*order).limit(limit + 1)))
    return rows[:limit], len(rows) > limit
