"""A crowd in the ledger, made by a few statements: tenants, one base, queued jobs, workers and what
they do. For `bench.queue`, and for the test that holds the plans of its queries."""

from __future__ import annotations

from sqlalchemy import text

from manylora.ledger.database import Database

BASE, PRINT, QUEUE = "crowded", "ab" * 32, "pool.crowded.cpu"
SLOTS_PER_WORKER = 4
_BEGIN = (
    "INSERT INTO bases (name, fingerprint, dtype, architecture, source, parameters, hidden_size,"
    " bytes, files, layers, state) VALUES (:base, :print, 'float32', 'a', 's', 1, 1, 1, '[]', '{}',"
    " 'ready')",
)
_TENANTS = """
INSERT INTO tenants (id, name)
SELECT md5('tenant' || i)::uuid, 'crowd-' || i
FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS i
"""
_FILES = """
INSERT INTO files (id, tenant_id, filename, purpose, bytes, sha256)
SELECT 'file-crowd-' || i, md5('tenant' || i)::uuid, 'f.jsonl', 'fine-tune', 1, :print
FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS i
"""
#: the first tenant has a tenth of all jobs, the others have what is left in equal parts
_JOBS = """
INSERT INTO jobs (id, tenant_id, base, base_fingerprint, training_file, seed, asked,
    hyperparameters, priority, state, attempt, failures, step, device_seconds, queued_at, examples)
SELECT 'ftjob-crowd-' || i, md5('tenant' || t)::uuid, :base, :print, 'file-crowd-' || t, 1, '{}',
    '{"n_epochs": 3}', i % 3, 'queued', 0, 0, 0, 0,
    clock_timestamp() - make_interval(secs => (i * 7919) % 86400), 10 + i % 90
FROM (SELECT i::bigint AS i, CASE WHEN i % 10 = 0 THEN 1 ELSE 1 + i % CAST(:tenants AS int) END AS t
    FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS i) AS drawn
"""
_WORKERS = """
INSERT INTO workers (id, device_kind, slots, pinned, assigned_base, fingerprint, queue, state,
    facts)
SELECT 'crowd-' || i, 'cpu', :per, true, :base, :print, :queue, 'ready', '{}'
FROM generate_series(1, CAST(:count AS int)) AS i
"""
_CLAIM = """
WITH out AS (
    SELECT id, attempt, row_number() OVER (ORDER BY id) AS n FROM jobs WHERE state = 'dispatched'
), claimed AS (
    UPDATE jobs j SET state = 'running', dispatch_deadline = NULL, resend_at = NULL,
        started_at = coalesce(started_at, clock_timestamp())
    FROM out WHERE j.id = out.id
)
UPDATE attempts a SET worker_id = 'crowd-' || (1 + out.n % CAST(:workers AS int)),
    started_at = clock_timestamp(), lease_expires_at = clock_timestamp() + interval '1 day'
FROM out WHERE a.job_id = out.id AND a.attempt = out.attempt
"""
_END = """
WITH over AS (
    SELECT id, attempt FROM jobs WHERE state = 'running' ORDER BY started_at, id LIMIT :count
), closed AS (
    UPDATE attempts a SET ended_at = clock_timestamp(), outcome = 'succeeded',
        device_seconds = 30.0 FROM over WHERE a.job_id = over.id AND a.attempt = over.attempt
)
UPDATE jobs j SET state = 'succeeded', finished_at = clock_timestamp(), sweeps = 2
FROM over WHERE j.id = over.id
"""


class Crowd:
    """The ledger of one database, filled step by step; how much of it there is already."""

    def __init__(
        self, database: Database, *, jobs: int = 0, tenants: int = 0, workers: int = 0
    ) -> None:
        self.database = database
        self.jobs, self.tenants, self.workers = jobs, tenants, workers

    def begin(self) -> None:
        """The base, in an empty ledger."""
        self._do(*_BEGIN, base=BASE, print=PRINT)

    def _do(self, *statements: str, **given: object) -> None:
        with self.database.transaction() as tx:
            tx.execute(text("SET LOCAL statement_timeout = 0"))
            for statement in statements:
                tx.execute(text(statement), given)

    def grow(self, jobs: int, tenants: int) -> None:
        """As many queued jobs and tenants as that, in all."""
        last = {"first": self.tenants + 1, "last": tenants, "print": PRINT}
        self._do(_TENANTS, _FILES, **last)
        self.tenants = max(tenants, self.tenants)
        self.come(jobs - self.jobs)
        self.analyse()

    def come(self, count: int) -> None:
        """So many new jobs are queued."""
        self._do(
            _JOBS, first=self.jobs + 1, last=self.jobs + count, tenants=self.tenants,
            base=BASE, print=PRINT,
        )  # fmt: skip
        self.jobs += count

    def staff(self, slots: int) -> None:
        """Workers with so many slots together."""
        self.workers = slots // SLOTS_PER_WORKER
        self._do(
            _WORKERS, count=self.workers, per=SLOTS_PER_WORKER, base=BASE, print=PRINT, queue=QUEUE
        )

    def claim(self) -> None:
        """The workers take what was sent out."""
        self._do(_CLAIM, workers=self.workers)

    def end(self, count: int) -> None:
        """So many jobs are over."""
        self._do(_END, count=count)

    def analyse(self) -> None:
        """What autovacuum would do in a while."""
        with self.database.engine.connect() as connection:
            free = connection.execution_options(isolation_level="AUTOCOMMIT")
            free.execute(text("SET statement_timeout = 0"))
            free.execute(text("VACUUM ANALYZE"))
