"""Rounds on real servers: shares, quotas, what is said about them, and plans that stay small."""

import datetime as dt
import uuid

import pytest
from sqlalchemy import func, select, text, update

from bench.crowd import BASE, Crowd
from manylora import keys
from manylora.ledger import explain, jobs, leases, lines, schema, shares, workers
from manylora.ledger.database import Database
from manylora.ledger.tables import Job, Line, Pool
from scheduler import snapshot
from scheduler.intake import Intake
from scheduler.loop import Scheduler
from tests.manylora.ledger.conftest import HEX, make_ledger
from tests.manylora.ledger.test_schema import fresh as fresh  # a fixture


@pytest.fixture
def scheduler(service):
    one = Scheduler(service.settings)
    yield one
    one.app.close()
    one.database.close()


def staff(ledger, slots, name=None):
    """A ready worker for the ledger's base; its id."""
    name = name or f"w-{uuid.uuid4().hex[:8]}"
    with ledger.transaction() as tx:
        workers.report(
            tx, name, device_kind="cpu", slots=slots, pinned=True, facts={},
            assigned_base=ledger.base.name, fingerprint=HEX,
            queue=keys.pool_queue(ledger.base.name, "cpu"), state="ready", note=None,
        )  # fmt: skip
    return name


@pytest.fixture
def ledger(service):
    return make_ledger(service.database)


def beside(ledger):
    """Another tenant of the same base."""
    other = make_ledger(ledger.database)
    other.base = ledger.base
    return other


def states(ledger, ids):
    return [ledger.get(job_id).state for job_id in ids]


def say(ledger, job_id):
    with ledger.transaction() as tx:
        return explain.reason(tx, tx.get(Job, job_id))


def test_a_flood_does_not_keep_another_tenant_waiting(ledger, scheduler):
    staff(ledger, 4)
    flood = [ledger.job() for _ in range(40)]
    late = beside(ledger)
    theirs = [late.job() for _ in range(3)]
    assert scheduler.tick() == 4
    went = [s == "dispatched" for s in states(ledger, flood)]
    assert sum(went) == 2  # to each half of the slots
    assert sum(s == "dispatched" for s in states(late, theirs)) == 2


def test_weights_divide_the_slots(ledger, scheduler):
    staff(ledger, 6)
    heavy = beside(ledger)
    with ledger.transaction() as tx:
        shares.change(tx, heavy.tenant.name, {"weight": 2.0})
    one, two = [ledger.job() for _ in range(9)], [heavy.job() for _ in range(9)]
    assert scheduler.tick() == 6
    assert sum(s == "dispatched" for s in states(ledger, one)) == 2
    assert sum(s == "dispatched" for s in states(heavy, two)) == 4


def test_a_running_quota_holds_and_is_said_and_ends(ledger, scheduler):
    staff(ledger, 4)
    ids = [ledger.job() for _ in range(3)]
    with ledger.transaction() as tx:
        shares.change(tx, ledger.tenant.name, {"max_running": 1})
    assert scheduler.tick() == 1
    assert scheduler.tick() == 0
    waits = [i for i, s in zip(ids, states(ledger, ids), strict=True) if s == "queued"]
    assert say(ledger, waits[0]) == say(ledger, waits[1]) == "your running quota of 1 is used"
    (gone,) = set(ids) - set(waits)
    with ledger.transaction() as tx:
        jobs.cancel(tx, ledger.tenant.id, gone)
    assert scheduler.tick() == 1
    with ledger.transaction() as tx:
        shares.change(tx, ledger.tenant.name, {"max_running": None})
    assert scheduler.tick() == 1


def test_the_hours_of_a_day_hold_until_midnight(ledger, scheduler):
    staff(ledger, 2)
    job_id = ledger.job()
    with ledger.transaction() as tx:
        shares.change(tx, ledger.tenant.name, {"max_device_hours": 1.0})
        lines.charge(tx, {ledger.tenant.id: 3601.0}, 86_400.0)
    assert scheduler.tick() == 0
    assert "device-hours of today are used" in say(ledger, job_id)
    with ledger.transaction() as tx:
        line = tx.get(Line, (ledger.tenant.id, ledger.base.name))
        now = tx.scalar(select(func.clock_timestamp())).astimezone(dt.UTC)
        assert line.stopped_until.astimezone(dt.UTC) == snapshot.midnight(now.timestamp())
        tx.execute(
            text("UPDATE shares SET day = day - 1 WHERE tenant_id = :t"), {"t": ledger.tenant.id}
        )
        tx.execute(
            update(Line)
            .where(Line.tenant_id == ledger.tenant.id)
            .values(stopped_until=func.clock_timestamp())
        )
    assert scheduler.tick() == 1


def test_why_it_waits_is_told_for_every_cause(ledger, scheduler):
    job_id = ledger.job()
    assert say(ledger, job_id) == "the scheduler has not looked at it yet"
    scheduler.tick()
    assert say(ledger, job_id) == f"no worker serves {ledger.base.name}"
    name = staff(ledger, 1)
    with ledger.transaction() as tx:
        workers.report(
            tx, name, device_kind="cpu", slots=1, pinned=True, facts={}, state="loading",
            assigned_base=ledger.base.name, fingerprint=None, queue=None, note=None,
        )  # fmt: skip
    scheduler.tick()
    assert say(ledger, job_id) == f"a worker is loading {ledger.base.name}"
    staff(ledger, 1, name)
    assert scheduler.tick() == 1
    assert say(ledger, job_id) is None
    second = ledger.job()
    scheduler.tick()
    assert say(ledger, second).startswith(f"all 1 slots of {ledger.base.name} are taken")


def test_a_job_that_failed_around_itself_says_that_it_waits_a_while(ledger, scheduler):
    worker = staff(ledger, 1)
    job_id = ledger.job()
    assert scheduler.tick() == 1
    with ledger.transaction() as tx:
        leases.claim(tx, job_id, 1, worker_id=worker, ttl_seconds=60)
        leases.release(tx, job_id, 1, actor="w", reason="r", counts=True, kind="infra")
    assert scheduler.tick() == 0
    assert say(ledger, job_id) == "it is tried again in a while, after a failure"
    with ledger.transaction() as tx:
        line = tx.get(Line, (ledger.tenant.id, ledger.base.name))
        assert line.stopped
        assert line.stopped_until == tx.get(Job, job_id).not_before
        tx.execute(update(Job).where(Job.id == job_id).values(not_before=None))
        tx.execute(update(Line).where(Line.stopped).values(stopped_until=func.clock_timestamp()))
    assert scheduler.tick() == 1


def test_a_deadline_goes_before_ones_own_that_can_wait(ledger, scheduler):
    staff(ledger, 1)
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(hours=2)
    first, urgent = ledger.job(), ledger.job(deadline=soon)
    assert scheduler.tick() == 1
    assert states(ledger, [first, urgent]) == ["queued", "dispatched"]


def test_what_was_foretold_is_measured_when_it_starts(ledger, scheduler):
    worker = staff(ledger, 1)
    first = ledger.job()
    assert scheduler.tick() == 1
    with ledger.transaction() as tx:
        leases.claim(tx, first, 1, worker_id=worker, ttl_seconds=60)
    job_id = ledger.job()
    scheduler.tick()
    told = ledger.get(job_id)
    assert 0 < told.foretold < told.promised
    ledger.publish(first)
    assert scheduler.tick() == 1
    with ledger.transaction() as tx:
        pool = tx.get(Pool, ledger.base.name)
        assert (pool.foretold, pool.in_time, len(pool.ratios)) == (1, 1, 1)


def test_two_schedulers_never_give_a_slot_away_twice(ledger, scheduler, service):
    staff(ledger, 2)
    ids = [ledger.job() for _ in range(6)]
    other = Scheduler(service.settings)
    try:
        with ledger.transaction() as tx:
            assert lines.steer(tx)
            assert other.tick() == scheduler.tick() == 0
        assert other.tick() + scheduler.tick() == 2
        assert states(ledger, ids).count("dispatched") == 2
    finally:
        other.app.close()
        other.database.close()


def test_files_are_read_one_tenant_after_the_other(ledger, service):
    intake = Intake(service.database, service.store, None)
    other = beside(ledger)
    for _ in range(4):
        ledger.job("validating_files")
    other.job("validating_files")
    seen = []
    for _ in range(4):
        with ledger.transaction() as tx:
            job = intake._next(tx)
            intake._last = job.tenant_id
            seen.append(job.tenant_id)
            jobs.cancel(tx, job.tenant_id, job.id)
    assert other.tenant.id in seen[:2]


ASKED = {
    "heads": (
        snapshot.HEADS.text,
        {"bases": [BASE], "lines": [1000], "jobs": [4]},
    ),
    "counting lines": (snapshot._COUNT.text, {"bases": [BASE], "lines": [1000]}),
    "changes": ("SELECT seq FROM changes ORDER BY seq LIMIT 20000", {}),
    "new jobs": (
        "SELECT * FROM jobs WHERE state = 'validating_files' AND tenant_id > :t"
        " ORDER BY tenant_id, created_at LIMIT 1",
        {"t": uuid.UUID(int=0)},
    ),
    "oldest": (
        "SELECT queued_at FROM jobs WHERE state = 'queued' AND base = :b"
        " ORDER BY queued_at LIMIT 1",
        {"b": BASE},
    ),
    "unsettled": (
        "SELECT job_id FROM attempts WHERE ended_at IS NOT NULL AND NOT settled"
        " ORDER BY ended_at LIMIT 5000",
        {},
    ),
    "quota": (shares._QUEUED.text, {"tenant": uuid.UUID(int=1)}),
}


def test_a_round_reads_the_heads_of_a_queue_of_100_000_and_no_more(fresh):
    schema.upgrade(fresh[0])
    owner = Database(fresh[0])
    try:
        crowd = Crowd(owner)
        crowd.begin()
        crowd.staff(1000)
        crowd.grow(100_000, 10_000)
        queued = 0
        while True:
            with owner.transaction() as tx:
                told = lines.fold(tx, 86_400.0)
            queued += len(told.queued)
            if not told.more:
                break
        assert queued == 100_000
        crowd.analyse()
        for name, (query, given) in ASKED.items():
            with owner.transaction() as tx:
                plan = tx.scalar(text(f"EXPLAIN (FORMAT JSON, ANALYZE, COSTS ON) {query}"), given)
            read = _read(plan[0]["Plan"])
            whole = {table for kind, table, _ in read if kind == "Seq Scan"}
            # Counting stops at its limit, so that reading lines in any order is as good.
            assert not whole & ({"jobs"} if name == "counting lines" else {"jobs", "lines"}), name
            rows = sum(count for _, table, count in read if table in ("jobs", "lines", "attempts"))
            assert rows <= 6000, (name, read)
    finally:
        owner.close()


def _read(node):
    """(kind, table, rows over all loops) of every scan of a plan."""
    found = []
    if "Relation Name" in node:
        rows = node["Actual Rows"] * node["Actual Loops"]
        found.append((node["Node Type"], node["Relation Name"], rows))
    for below in node.get("Plans", ()):
        found += _read(below)
    return found
