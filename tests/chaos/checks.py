"""What must hold once the dust has settled, whatever happened before."""

import hashlib
import json

from sqlalchemy import func, select, text

from manylora import keys
from manylora.ledger import checkpoints
from manylora.ledger.tables import Adapter, Attempt, Checkpoint, Event, Job
from scheduler.prune import prune
from tests.chaos.stack import until


def assert_published_once(stack, job_id, digest):
    """Succeeded exactly once, one adapter, whose stored bytes are those of an undisturbed run."""
    with stack.service.database.transaction() as tx:
        job = tx.get(Job, job_id)
        rows = list(tx.scalars(select(Adapter).where(Adapter.job_id == job_id)))
        history = list(tx.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.seq)))
        states = checkpoints.of_job(tx, job_id, "state")
    assert job.state == "succeeded", (job.id, job.state, job.error_code, job.error_message)
    (adapter,) = rows
    assert [e.to_state for e in history].count("succeeded") == 1
    assert states == []
    before, attempt = None, 0
    for event in history:  # the history is the row's own: no step of it is missing or out of turn
        assert event.attempt >= attempt
        attempt = event.attempt
        if event.to_state is not None:
            assert event.from_state == before, (event.from_state, event.to_state, before)
            before = event.to_state
    assert before == job.state
    assert job.attempt == attempt == adapter.attempt
    body = stack.service.store.get_bytes(adapter.manifest_key)
    assert hashlib.sha256(body).hexdigest() == adapter.manifest_sha256
    manifest = json.loads(body)
    assert manifest["attempt"] == adapter.source_attempt <= adapter.attempt
    assert manifest["exact"] is True
    for file in manifest["files"]:
        assert stack.service.store.digest(f"{adapter.prefix}/{file['name']}") == file["sha256"]
    assert adapter.weights_sha256 == digest, "not the bytes of an undisturbed run"
    return adapter, manifest


def assert_nothing_left(stack):
    """After two sweeps the bucket holds what rows name, and no unfinished upload; no attempt's
    books are open."""
    database, store = stack.service.database, stack.service.store
    for _ in range(2):
        while prune(database, store, 0.0):
            pass
    with database.transaction() as tx:
        kept = {a.prefix for a in tx.scalars(select(Adapter))}
        kept |= {c.prefix for c in tx.scalars(select(Checkpoint))}
        whole = {a.manifest_key for a in tx.scalars(select(Adapter))}
        jobs = list(tx.scalars(select(Job)))
    assert all(job.sweeps == 2 for job in jobs)
    tenant = str(stack.tenant.id)
    stored = [k for j in jobs for k in store.list(f"{keys.job_prefix(tenant, j.id)}/")]
    orphans = [k for k in stored if k.rsplit("/", 1)[0] not in kept and k not in whole]
    assert orphans == []
    assert whole <= set(stored)
    assert kept <= {key.rsplit("/", 1)[0] for key in stored}
    assert store.unfinished(keys.JOBS) == []
    until(lambda: _open_books(database) == 0, "every attempt's books to be closed", 30)


def _open_books(database):
    with database.transaction() as tx:
        return tx.scalar(
            select(func.count()).select_from(Attempt).where(Attempt.ended_at.is_(None))
        )


def adapters_per_job(stack):
    """The most adapters any job has; the database allows one, this asks it."""
    with stack.service.database.transaction() as tx:
        return tx.scalar(
            text("SELECT coalesce(max(n), 0) FROM (SELECT count(*) n FROM adapters"
                 " GROUP BY job_id) one")
        )  # fmt: skip
