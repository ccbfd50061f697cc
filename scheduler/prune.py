"""Clear the bucket of what ended jobs left there: twice each, for a dead worker may turn out to be
a slow one and write after the first time. Of their curves about a thousand points are left."""

from __future__ import annotations

import datetime as dt

import structlog
from sqlalchemy import func, select, update

from manylora import keys
from manylora.ledger import adapters, checkpoints, events, lines
from manylora.ledger.database import Database
from manylora.ledger.tables import Job
from manylora.storage import sweep
from manylora.storage.store import Store

log = structlog.get_logger(__name__)
_NOW = func.clock_timestamp()
SWEEPS = 2


def prune(database: Database, store: Store, grace_seconds: float, *, limit: int = 100) -> bool:
    """Sweep jobs that ended one grace ago (and again after two), and abort uploads in parts that
    are as old. True when as many as `limit` were due. Two at once do no harm.

    Raises: UnavailableError.
    """
    grace = dt.timedelta(seconds=grace_seconds)
    with database.transaction() as tx:
        due = tx.execute(
            select(Job.id, Job.tenant_id, Job.sweeps)
            .where(Job.sweeps < SWEEPS, Job.finished_at + grace * (Job.sweeps + 1) < _NOW)
            .order_by(Job.finished_at)
            .limit(limit)
        ).all()
    for job_id, tenant_id, sweeps in due:
        with database.transaction() as tx:
            checkpoints.drop_states(tx, job_id)
            events.thin(tx, job_id)
            kept = [row.prefix for row in checkpoints.of_job(tx, job_id, "epoch")]
            adapter = adapters.of_job(tx, job_id)
        whole = [adapter.manifest_key] if adapter else []
        prefixes = [*kept, adapter.prefix] if adapter else kept
        gone = sweep.clear(store, str(tenant_id), job_id, prefixes, *whole)
        with database.transaction() as tx:
            tx.execute(
                update(Job).where(Job.id == job_id, Job.sweeps == sweeps).values(sweeps=sweeps + 1)
            )
        log.info("bucket.swept", job_id=job_id, objects=gone)
    with database.transaction() as tx:
        if lines.steer(tx):
            lines.prune(tx)
    aborted = sweep.abort(store, keys.JOBS, grace_seconds)
    if aborted:
        log.info("bucket.aborted", uploads=aborted)
    return len(due) == limit
