"""Three look-ups the ledger has no verb for: a request sent again, jobs without metadata, and
the lock on a dataset's bytes. Everything else about rows is asked of `manylora.ledger`."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import uuid
from typing import Any

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from manylora.ledger import jobs
from manylora.ledger.tables import File, Job

#: where a job keeps the digest of the body that made it, among what was asked for
BODY = "_body_sha256"
_AGAIN = dt.timedelta(minutes=10)


def body_digest(body: dict[str, Any]) -> str:
    """The digest of a request's body, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def lock(tx: Session, *names: object) -> None:
    """Wait until no other transaction holds this name; held to this transaction's end."""
    name = "/".join(str(part) for part in names)
    tx.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 1))))


def made_before(tx: Session, tenant_id: uuid.UUID, digest: str) -> Job | None:
    """The newest job that the same body of this tenant made within ten minutes."""
    return tx.scalar(
        select(Job)
        .where(
            Job.tenant_id == tenant_id,
            Job.asked[BODY].astext == digest,
            Job.created_at > func.clock_timestamp() - _AGAIN,
        )
        .order_by(Job.created_at.desc())
        .limit(1)
    )


def without_metadata(
    tx: Session, tenant_id: uuid.UUID, *, after: str | None, limit: int
) -> tuple[list[Job], bool]:
    """As `ledger.jobs.page`, of the jobs that carry no metadata."""
    query = select(Job).where(
        Job.tenant_id == tenant_id,
        # A None given to a JSONB column is stored as JSON's null, not SQL's.
        Job.job_metadata.is_(None) | (func.jsonb_typeof(Job.job_metadata) == "null"),
    )
    if after:
        mark = jobs.get(tx, tenant_id, after)
        query = query.where(tuple_(Job.created_at, Job.id) < tuple_(mark.created_at, mark.id))
    rows = list(tx.scalars(query.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit + 1)))
    return rows[:limit], len(rows) > limit


def bytes_needed(tx: Session, tenant_id: uuid.UUID, sha256: str) -> bool:
    """Whether a file of the tenant that is not deleted has these bytes."""
    found = tx.scalar(
        select(File.id)
        .where(File.tenant_id == tenant_id, File.sha256 == sha256, File.deleted_at.is_(None))
        .limit(1)
    )
    return found is not None
