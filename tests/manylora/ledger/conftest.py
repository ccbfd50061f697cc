"""One database for the whole folder, and a job in any state, made by a few lines of SQL."""

import uuid
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import func, inspect, select, text, update

from manylora.ledger import bases, checkpoints, files, jobs, leases, tenants
from manylora.ledger.database import Database
from manylora.ledger.tables import Adapter, Attempt, Checkpoint, Event, Job, Metric
from tests.conftest import leave_nothing_open

HEX = "ab" * 32
#: what a job's history consists of
BOOKS = (Job, Attempt, Checkpoint, Adapter, Event, Metric)


@dataclass
class Ledger:
    """A database, and what a test of a job's moves begins with."""

    database: Database
    tenant: Any
    base: Any
    file: Any

    def transaction(self):
        return self.database.transaction()

    def job(self, state="queued", *, attempt=0, **columns):
        """The id of a job in that state, at that attempt, whose attempts are on the books."""
        given = {
            "tenant_id": self.tenant.id, "base": self.base.name, "base_fingerprint": HEX,
            "training_file": self.file.id, "validation_file": None, "suffix": None, "seed": 1,
            "asked": {}, "hyperparameters": {}, "job_metadata": None, "priority": 0,
            "idempotency_key": None, **columns,
        }  # fmt: skip
        with self.transaction() as tx:
            job = jobs.create(tx, **given)
            for number in range(1, attempt + 1):
                tx.add(Attempt(job_id=job.id, attempt=number, queue="q"))
            deadline = text("clock_timestamp() + interval '1 minute'")
            tx.execute(
                update(Job)
                .where(Job.id == job.id)
                .values(
                    state=state,
                    attempt=attempt,
                    queued_at=None if state == "validating_files" else func.clock_timestamp(),
                    dispatch_deadline=deadline if state == "dispatched" else None,
                )
            )
            return job.id

    def running(self, worker="w1", ttl=60.0, **columns):
        """The id of a queued job that was dispatched and claimed: attempt 1 runs."""
        job_id = self.job(**columns)
        self.start(job_id, worker, ttl)
        return job_id

    def start(self, job_id, worker="w1", ttl=60.0):
        """Dispatch and claim; returns the attempt."""
        attempt = self.dispatch(job_id)
        with self.transaction() as tx:
            leases.claim(tx, job_id, attempt, worker_id=worker, ttl_seconds=ttl)
        return attempt

    def dispatch(self, job_id, deadline=60.0):
        with self.transaction() as tx:
            return leases.dispatch(tx, job_id, queue="q", deadline_seconds=deadline)

    def rescue(self):
        """The jobs of this ledger's tenant that a rescue queued again."""
        with self.transaction() as tx:
            back = leases.rescue(tx, limit=10_000)
            return [i for i in back if tx.get(Job, i).tenant_id == self.tenant.id]

    def get(self, job_id):
        with self.transaction() as tx:
            return tx.get(Job, job_id)

    def books(self, job_id):
        """Every column of every row about a job."""
        with self.transaction() as tx:
            return {
                table.__tablename__: sorted(
                    tuple(str(getattr(row, c.key)) for c in inspect(table).mapper.column_attrs)
                    for row in tx.scalars(select(table).where(_of(table, job_id)))
                )
                for table in BOOKS
            }

    def events(self, job_id):
        """(from, to, attempt, message) of a job's events, oldest first."""
        with self.transaction() as tx:
            rows = tx.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.seq))
            return [(e.from_state, e.to_state, e.attempt, e.message) for e in rows]

    def attempts(self, job_id):
        """{attempt: outcome} of a job."""
        with self.transaction() as tx:
            return {a.attempt: a.outcome for a in jobs.attempts(tx, job_id)}

    def waiters(self):
        """How many of this database's connections wait for a lock."""
        with self.transaction() as tx:
            return tx.scalar(
                text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            )

    def adapter(self, job_id, attempt=1, **columns):
        """An adapter's row, not yet added."""
        given = {
            "name": f"ft:b:t::{uuid.uuid4().hex[:8]}", "tenant_id": self.tenant.id,
            "job_id": job_id, "attempt": attempt, "source_attempt": attempt,
            "base": self.base.name, "base_fingerprint": HEX,
            "prefix": "p", "manifest_key": "m", "manifest_sha256": HEX, "weights_sha256": HEX,
            "bytes": 3, **columns,
        }  # fmt: skip
        return Adapter(**given)

    def checkpoint(self, tx, job_id, attempt, step=5, sha256=HEX):
        """Record a checkpoint as the worker of that attempt would."""
        job = Job(id=job_id, tenant_id=self.tenant.id, attempt=attempt)
        checkpoints.add(tx, job, step=step, prefix=f"c/{step}", manifest_sha256=sha256, metrics={})

    def publish(self, job_id, attempt=1):
        with self.transaction() as tx:
            leases.publish(
                tx, job_id, attempt, worker_id="w1", tokens=9, adapter=self.adapter(job_id, attempt)
            )


def _of(table, job_id):
    return (table.id if table is Job else table.job_id) == job_id


@pytest.fixture(scope="session")
def database(urls):
    opened = Database(urls.database_url)
    yield opened
    opened.close()


def make_ledger(database):
    with database.transaction() as tx:
        tenant = tenants.create(tx, f"t-{uuid.uuid4().hex[:12]}")
        base = bases.start(
            tx, name=f"b-{uuid.uuid4().hex[:12]}", fingerprint=HEX, dtype="float32",
            architecture="a", source="s", parameters=1, hidden_size=1, bytes=1,
            chat_template=None, files=[], layers={},
        )  # fmt: skip
        bases.finish(tx, base.name)
        file = files.add(tx, tenant.id, filename="f.jsonl", purpose="fine-tune", size=1, sha256=HEX)
    return Ledger(database, tenant, base, file)


@pytest.fixture
def ledger(database):
    yield make_ledger(database)
    leave_nothing_open(database)


@pytest.fixture
def stranger(database):
    """Another tenant, who should see nothing."""
    with database.transaction() as tx:
        return tenants.create(tx, f"s-{uuid.uuid4().hex[:12]}")
