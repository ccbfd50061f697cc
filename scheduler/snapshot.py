"""Read the ledger into a snapshot for the planner: one transaction, plain values.

Of the queue only the lines whose turn is next are read, as many as slots are free, and of tenants
that run the first job of theirs that would take the place of another. So what a round costs grows
with the slots and with what changed, not with the queue.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Row, String, Uuid, bindparam, select, text
from sqlalchemy.orm import Session

from manylora.ledger import bases, workers
from manylora.ledger.database import times
from manylora.ledger.states import JobState
from manylora.ledger.tables import Attempt, Job, Pool, Worker
from scheduler.capacity import measure
from scheduler.views import Running, Snapshot, Tenant, Waiting, WorkerView

#: lines looked at where no slot is free, so that what they wait for can be said
LOOKED_AT = 8
_COST = 60.0
_JOB = """
    SELECT id, base_fingerprint, priority, extract(epoch FROM queued_at) AS queued_at,
        extract(epoch FROM deadline) AS deadline, attempt, foretold, promised,
        waiting_for, examples * (hyperparameters->>'n_epochs')::float AS passes,
        1.0 - coalesce(step::float / nullif(total_steps, 0), 0.0) AS rest
    FROM jobs
    WHERE tenant_id = l.tenant_id AND base = l.base AND state = 'queued'
        AND (not_before IS NULL OR not_before <= clock_timestamp())
    ORDER BY rank, id LIMIT want.jobs
"""
_COUNT = text(
    """
SELECT want.base, (SELECT count(*) FROM (
    SELECT 1 FROM lines WHERE base = want.base AND queued > 0 AND NOT stopped LIMIT want.lines
) AS found)
FROM unnest(CAST(:bases AS text[]), CAST(:lines AS bigint[])) AS want(base, lines)
"""
)
#: the lines whose turn is next, and the first jobs of each
HEADS = text(
    f"""
SELECT l.tenant_id, l.base, extract(epoch FROM l.since) AS since, j.*
FROM unnest(CAST(:bases AS text[]), CAST(:lines AS bigint[]), CAST(:jobs AS bigint[]))
    AS want(base, lines, jobs)
CROSS JOIN LATERAL (
    SELECT tenant_id, base, since FROM lines
    WHERE base = want.base AND queued > 0 AND NOT stopped
    ORDER BY turn, tenant_id LIMIT want.lines
) AS l
LEFT JOIN LATERAL ({_JOB}) AS j ON true
"""  # noqa: S608  (no value is put in)
)
#: the first job of tenants that run something
URGENT = text(
    f"""
SELECT l.tenant_id, l.base, extract(epoch FROM l.since) AS since, j.*
FROM unnest(:tenants, :bases, :least, :jobs) AS want(tenant_id, base, least, jobs)
JOIN lines l ON l.tenant_id = want.tenant_id AND l.base = want.base AND l.queued > 0
    AND NOT l.stopped
CROSS JOIN LATERAL ({_JOB}) AS j
WHERE j.priority > want.least
"""  # noqa: S608  (no value is put in)
).bindparams(
    bindparam("tenants", type_=ARRAY(Uuid())),
    bindparam("bases", type_=ARRAY(String())),
    bindparam("least", type_=ARRAY(BigInteger())),
    bindparam("jobs", type_=ARRAY(BigInteger())),
)
_TENANTS = text(
    """
SELECT s.tenant_id, s.weight, s.used, extract(epoch FROM s.used_at) AS used_at, s.max_running,
    s.max_device_hours * 3600 - CASE WHEN s.day = (clock_timestamp() AT TIME ZONE 'UTC')::date
        THEN s.day_seconds ELSE 0 END AS left_today,
    (SELECT coalesce(sum(active), 0) FROM lines WHERE tenant_id = s.tenant_id) AS active
FROM shares s WHERE s.tenant_id = ANY(:tenants)
"""
).bindparams(bindparam("tenants", type_=ARRAY(Uuid())))


@dataclass
class Seen:
    """A snapshot, and what only the writing of what was decided needs."""

    snapshot: Snapshot
    owners: dict[str, uuid.UUID] = field(default_factory=dict)
    #: job -> (attempts so far, the p90 of its wait as foretold)
    first: dict[str, float] = field(default_factory=dict)
    #: lines of which no job may go yet
    empty: list[tuple[uuid.UUID, str]] = field(default_factory=list)
    pools: dict[str, Pool] = field(default_factory=dict)
    #: bases of which more lines or jobs wait than were read
    cut: set[str] = field(default_factory=set)
    #: free slots by base
    free: dict[str, int] = field(default_factory=dict)
    #: what each job was told it waits for, if it was
    told: dict[str, str] = field(default_factory=dict)


def read(
    tx: Session,
    *,
    worker_silence_seconds: float,
    half_life: float,
    most_preemptions: int = 0,
    settled: bool = True,
) -> Seen:
    """The heads of the lines, who is at work, the living workers, what is busy, which bases."""
    now, _ = times(tx)
    alive = [
        w for w in workers.alive(tx, within_seconds=worker_silence_seconds) if w.state != "draining"
    ]
    views = tuple(_view(worker) for worker in alive)
    busy = workers.busy(tx)
    running, bases_of = _running(tx)
    seen = Seen(Snapshot((), views, busy, ()), pools={p.base: p for p in tx.scalars(select(Pool))})
    free = _free(Snapshot((), views, busy, (), running=running))
    seen.free = free
    waiting, since = _heads(tx, seen, free)
    known = {job.job_id for job in waiting}
    for row in _urgent(tx, running, bases_of, free):
        if row.id not in known:
            waiting.append(_waiting(row, seen))
            since[str(row.tenant_id), row.base] = float(row.since)
    mine = {job.tenant for job in waiting} | {job.tenant for job in running}
    ready = sorted(bases.ready(tx), key=lambda b: b.created_at)
    seen.snapshot = Snapshot(
        waiting=tuple(waiting),
        workers=views,
        busy=busy,
        bases=tuple(b.name for b in ready),
        running=running,
        most_preemptions=most_preemptions,
        settled=settled,
        tenants=_tenants(tx, mine),
        since=since,
        demand={base: pool.queued for base, pool in seen.pools.items()},
        now=now,
        half_life=half_life,
    )
    return seen


def _view(w: Worker) -> WorkerView:
    return WorkerView(
        w.id, w.slots, w.pinned, w.assigned_base, w.fingerprint, w.queue, w.state == "ready"
    )


def _running(tx: Session) -> tuple[tuple[Running, ...], dict[str, str]]:
    rows = tx.execute(
        select(
            Job.id, Job.attempt, Attempt.queue, Job.priority, Attempt.started_at, Job.wish,
            Job.preemptions, Attempt.worker_id, Job.tenant_id, Attempt.charged, Job.base,
        )
        .join(Attempt, (Attempt.job_id == Job.id) & (Attempt.attempt == Job.attempt))
        .where(Job.state == JobState.RUNNING.value)
        .order_by(Job.id)
    ).all()  # fmt: skip
    running = tuple(
        Running(
            r.id, r.attempt, r.queue, r.priority, r.started_at.timestamp() if r.started_at else 0.0,
            r.wish, r.preemptions, r.worker_id, str(r.tenant_id), r.charged,
        )
        for r in rows
    )  # fmt: skip
    return running, {r.id: r.base for r in rows}


def _free(snapshot: Snapshot) -> dict[str, int]:
    """Free slots by base."""
    capacity = measure(snapshot)
    queues: dict[str, set[str]] = {}
    for worker in snapshot.workers:
        if worker.assigned_base and worker.fingerprint:
            queues.setdefault(worker.assigned_base, set()).update(
                capacity.queues.get(worker.fingerprint, ())
            )
    return {base: sum(capacity.free[q] for q in names) for base, names in queues.items()}


def _heads(
    tx: Session, seen: Seen, free: Mapping[str, int]
) -> tuple[list[Waiting], dict[tuple[str, str], float]]:
    wanted = sorted(base for base, pool in seen.pools.items() if pool.queued > 0)
    waiting: list[Waiting] = []
    since: dict[tuple[str, str], float] = {}
    if not wanted:
        return waiting, since
    lines = [max(LOOKED_AT, free.get(base, 0)) for base in wanted]
    rows = tx.execute(_COUNT, {"bases": wanted, "lines": lines}).all()
    counted = {row[0]: int(row[1]) for row in rows}
    # More than one of a line goes where there are fewer lines than slots.
    jobs = [2 * free.get(base, 0) // max(1, counted.get(base, 0)) + 1 for base in wanted]
    jobs = [1 if counted.get(base, 0) >= count else each for base, count, each in
            zip(wanted, lines, jobs, strict=True)]  # fmt: skip
    rows = tx.execute(HEADS, {"bases": wanted, "lines": lines, "jobs": jobs}).all()
    per_line: Counter[tuple[uuid.UUID, str]] = Counter()
    for row in rows:
        since[str(row.tenant_id), row.base] = float(row.since)
        if row.id is None:
            seen.empty.append((row.tenant_id, row.base))
            continue
        per_line[row.tenant_id, row.base] += 1
        waiting.append(_waiting(row, seen))
    most = dict(zip(wanted, jobs, strict=True))
    seen.cut = {base for (_, base), count in per_line.items() if count >= most[base]}
    return waiting, since


def _urgent(
    tx: Session, running: tuple[Running, ...], bases_of: Mapping[str, str], free: Mapping[str, int]
) -> list[Row[Any]]:
    least: dict[tuple[str, str], int] = {}
    for job in running:
        base = bases_of[job.job_id]
        if not free.get(base, 0):
            place = job.tenant, base
            least[place] = min(job.priority, least.get(place, job.priority))
    if not least:
        return []
    places = sorted(least)
    given = {
        "tenants": [uuid.UUID(tenant) for tenant, _ in places],
        "bases": [base for _, base in places],
        "least": [least[place] for place in places],
        "jobs": [1] * len(places),
    }
    return list(tx.execute(URGENT, given).all())


def _waiting(row: Row[Any], seen: Seen) -> Waiting:
    pool = seen.pools.get(row.base)
    seen.owners[row.id] = row.tenant_id
    if row.waiting_for is not None:
        seen.told[row.id] = row.waiting_for
    if row.attempt == 0 and row.promised is not None:
        seen.first[row.id] = row.promised
    return Waiting(
        row.id,
        row.base,
        row.base_fingerprint,
        row.priority,
        float(row.queued_at or 0.0),
        str(row.tenant_id),
        cost(row.passes, row.rest, pool.pace if pool else None, pool.service if pool else None),
        None if row.deadline is None else float(row.deadline),
        row.foretold if row.attempt == 0 else None,
    )


def cost(passes: float | None, rest: float, pace: float | None, service: float | None) -> float:
    """Device-seconds a job will take, going by what others took lately."""
    if passes is not None and pace is not None:
        return max(1.0, passes * pace * max(0.0, rest))
    return _COST if service is None else max(1.0, service)


def _tenants(tx: Session, names: set[str]) -> dict[str, Tenant]:
    rows = tx.execute(_TENANTS, {"tenants": sorted(uuid.UUID(name) for name in names if name)})
    return {
        str(r.tenant_id): Tenant(
            r.weight, r.used, float(r.used_at), int(r.active), r.max_running, r.left_today
        )
        for r in rows
    }


def midnight(now: float) -> dt.datetime:
    """When the day of quotas ends: the next midnight, UTC."""
    day = dt.datetime.fromtimestamp(now, dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day + dt.timedelta(days=1)
