"""Lines, shares and quotas on PostgreSQL: counted exactly, in the fair order, held by quotas."""

import random
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, text

from manylora.errors import LostError, NotFoundError, QuotaError, UsageError
from manylora.ledger import explain, jobs, leases, lines, shares
from manylora.ledger.tables import Attempt, Job, Line, Pool, Share
from scheduler.fairness import FLOOR, charged, turn
from tests.manylora.ledger.conftest import HEX, make_ledger

HALF = 86_400.0
#: state -> the count of a line it is in
COUNTS = {
    "validating_files": "held", "paused": "held", "queued": "queued",
    "dispatched": "active", "running": "active",
}  # fmt: skip


def folded(ledger):
    with ledger.transaction() as tx:
        return lines.fold(tx, HALF).queued


def line_of(ledger):
    with ledger.transaction() as tx:
        return tx.get(Line, (ledger.tenant.id, ledger.base.name))


def test_whatever_happens_the_counts_are_those_of_the_jobs(ledger):
    draw, ids = random.Random(7), []
    for _ in range(120):
        if draw.random() < 0.3 or not ids:
            ids.append(ledger.job(draw.choice(("validating_files", "queued"))))
        job_id = draw.choice(ids)
        attempt = ledger.get(job_id).attempt
        verbs = (
            lambda tx, j=job_id: jobs.cancel(tx, ledger.tenant.id, j),
            lambda tx, j=job_id: jobs.pause(tx, ledger.tenant.id, j),
            lambda tx, j=job_id: jobs.resume(tx, ledger.tenant.id, j),
            lambda tx, j=job_id: leases.dispatch(tx, j, queue="q", deadline_seconds=60),
            lambda tx, j=job_id, a=attempt: leases.claim(tx, j, a, worker_id="w", ttl_seconds=60),
            lambda tx, j=job_id, a=attempt: leases.release(
                tx, j, a, actor="w", reason="r", counts=True
            ),
        )
        try:
            with ledger.transaction() as tx:
                draw.choice(verbs)(tx)
        except (LostError, jobs.StateError):
            pass
        if draw.random() < 0.2:
            folded(ledger)
    folded(ledger)
    with ledger.transaction() as tx:
        mine = select(Job.state, func.count()).where(Job.tenant_id == ledger.tenant.id)
        found = dict.fromkeys(("held", "queued", "active"), 0)
        for state, count in tx.execute(mine.group_by(Job.state)):
            if state in COUNTS:
                found[COUNTS[state]] += count
        line = tx.get(Line, (ledger.tenant.id, ledger.base.name))
        pool = tx.get(Pool, ledger.base.name)
        assert {name: getattr(line, name) for name in found} == found
        assert (pool.queued, pool.active) == (found["queued"], found["active"])
    assert sum(found.values()) > 5


def test_who_is_queued_is_told_once(ledger):
    first = ledger.job("validating_files")
    assert first not in folded(ledger)
    with ledger.transaction() as tx:
        jobs.move(tx, first, "accept", actor="s", examples=3)
    assert first in folded(ledger)
    assert folded(ledger) == []


def test_turns_in_the_database_are_those_of_the_planner(ledger):
    ledger.job()
    folded(ledger)
    with ledger.transaction() as tx:
        shares.change(tx, ledger.tenant.name, {"weight": 2.5})
        lines.charge(tx, {ledger.tenant.id: 5000.0}, HALF)
    with ledger.transaction() as tx:
        tx.execute(
            text("UPDATE shares SET used_at = used_at - interval '10 hours' WHERE tenant_id = :t"),
            {"t": ledger.tenant.id},
        )
        before = tx.get(Share, ledger.tenant.id)
        lines.charge(tx, {ledger.tenant.id: 100.0}, HALF)
    with ledger.transaction() as tx:
        after = tx.get(Share, ledger.tenant.id)
        line = tx.get(Line, (ledger.tenant.id, ledger.base.name))
        then, now = before.used_at.timestamp(), after.used_at.timestamp()
        assert after.used == pytest.approx(charged(before.used, then, now, 100.0, HALF))
        assert line.turn == pytest.approx(
            turn(after.used, now, line.since.timestamp(), 2.5, HALF), abs=1e-3
        )
        lines.retime(tx, None, HALF / 2)  # a half-life that was set anew
    assert line_of(ledger).turn == pytest.approx(
        turn(after.used, now, line.since.timestamp(), 2.5, HALF / 2), abs=1e-3
    )
    assert lines.FLOOR == FLOOR


def test_an_attempt_that_ended_is_settled_once(ledger):
    job_id = ledger.running()
    folded(ledger)
    with ledger.transaction() as tx:
        lines.note_charges(tx, [(job_id, 1, 60.0)])
        lines.charge(tx, {ledger.tenant.id: 60.0}, HALF)
        leases.renew(tx, job_id, 1, ttl_seconds=60, step=1, device_seconds=25.0, points=[])
        assert not [e for e in lines.settle(tx, HALF) if e.base == ledger.base.name]
    ledger.publish(job_id)
    with ledger.transaction() as tx:
        (ended,) = [e for e in lines.settle(tx, HALF) if e.base == ledger.base.name]
        assert (ended.outcome, ended.charged, ended.device_seconds) == ("succeeded", 60.0, 25.0)
        assert tx.get(Share, ledger.tenant.id).used == pytest.approx(25.0, abs=0.1)
        assert tx.get(Attempt, (job_id, 1)).settled
        assert not [e for e in lines.settle(tx, HALF) if e.base == ledger.base.name]


def test_many_are_dispatched_as_one_is(ledger):
    ids = [ledger.job() for _ in range(3)]
    one = ledger.job()
    with ledger.transaction() as tx:
        jobs.pause(tx, ledger.tenant.id, ids[2])
        many = jobs.dispatch_all(tx, ids, queue="q", deadline=60.0, resend=60.0)
        leases.dispatch(tx, one, queue="q", deadline_seconds=60.0)
    assert many == {ids[0]: 1, ids[1]: 1}
    assert ledger.get(ids[2]).state == "paused"
    assert ledger.events(ids[0])[-1] == ledger.events(one)[-1]
    mine, other = ledger.get(ids[0]), ledger.get(one)
    for column in ("state", "attempt", "waiting_for", "not_before"):
        assert getattr(mine, column) == getattr(other, column)
    assert (mine.dispatch_deadline is None, mine.resend_at is None) == (False, False)
    assert ledger.attempts(ids[0]) == ledger.attempts(one)


def test_only_one_steers(ledger):
    with ledger.transaction() as tx, ledger.transaction() as other:
        assert lines.steer(tx)
        assert not lines.steer(other)
    with ledger.transaction() as tx:
        assert lines.steer(tx)


def test_a_queue_that_is_full_says_its_limit_and_when_to_come_again(ledger):
    for _ in range(3):
        ledger.job()
    with ledger.transaction() as tx:
        shares.check_queued(tx, ledger.tenant.id, 4)
        shares.change(tx, ledger.tenant.name, {"max_queued": 3})
    folded(ledger)
    with ledger.transaction() as tx, pytest.raises(QuotaError) as refused:
        shares.check_queued(tx, ledger.tenant.id, 4)
    assert "3 of your 3 jobs" in refused.value.message
    assert refused.value.details["limit"] == 3
    assert refused.value.details["retry_after"] >= 1


def test_the_queue_quota_is_exact_whoever_submits_at_once(ledger):
    start = threading.Barrier(8)

    def submit(_):
        start.wait(30)
        try:
            with ledger.transaction() as tx:
                shares.check_queued(tx, ledger.tenant.id, 5)
                jobs.create(
                    tx, tenant_id=ledger.tenant.id, base=ledger.base.name, base_fingerprint=HEX,
                    training_file=ledger.file.id, seed=1, asked={}, hyperparameters={},
                )  # fmt: skip
        except QuotaError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(submit, range(8))) == 5


def test_bytes_are_counted(ledger):
    with ledger.transaction() as tx:
        shares.check_bytes(tx, ledger.tenant.id, 10**9)  # no bound
        shares.change(tx, ledger.tenant.name, {"max_bytes": 10})
        shares.check_bytes(tx, ledger.tenant.id, 9)  # one byte is there
        with pytest.raises(QuotaError, match="1 of your 10 bytes are used"):
            shares.check_bytes(tx, ledger.tenant.id, 10)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weight": 0.0}, "weight 0.0"),
        ({"weight": None}, "weight None"),
        ({"weight": float("nan")}, "weight nan"),
        ({"weight": -1.0}, "weight -1.0"),
        ({"max_running": 0}, "max_running 0: a quota is at least 1"),
        ({"max_device_hours": 0.0}, "max_device_hours 0.0"),
        ({"used": 1.0}, "used is not a quota"),
    ],
)
def test_a_weight_of_nothing_and_a_quota_of_zero_are_refused(ledger, change, told):
    with ledger.transaction() as tx, pytest.raises(UsageError, match=told):
        shares.change(tx, ledger.tenant.name, change)


def test_a_quota_is_set_and_taken_away(ledger):
    with ledger.transaction() as tx:
        assert shares.change(tx, ledger.tenant.name, {"max_running": 4})[1].max_running == 4
        assert shares.change(tx, ledger.tenant.name, {"weight": 2.0})[1].max_running == 4
        assert shares.change(tx, ledger.tenant.name, {"max_running": None})[1].max_running is None
        with pytest.raises(NotFoundError):
            shares.change(tx, "nobody-of-that-name", {"weight": 2.0})


def test_places_are_counted_and_nobody_else_is_named(database):
    """Ranks of priority and deadline in one's own line; other lines by their turns."""
    mine, other = make_ledger(database), make_ledger(database)
    other.base = mine.base
    ids = [mine.job(), mine.job(priority=1), mine.job()]
    theirs = other.job()
    folded(mine)
    with mine.transaction() as tx:
        lines.charge(tx, {mine.tenant.id: 50_000.0}, HALF)
        lines.pool(tx, mine.base.name, slots=2, active=2, tenants=2, weights=2.0, service=100.0)
    with mine.transaction() as tx:
        places = [explain.place(tx, tx.get(Job, job_id)) for job_id in ids]
        first = explain.place(tx, tx.get(Job, theirs))
    assert [p["ahead"] for p in places] == [
        {"yours": 1, "others": 1}, {"yours": 0, "others": 1}, {"yours": 2, "others": 1},
    ]  # fmt: skip
    assert first["ahead"] == {"yours": 0, "others": 0}
    assert (
        places[2]["reason"]
        == f"all 2 slots of {mine.base.name} are taken; 3 ahead, 2 of them yours"
    )
    assert places[0]["share"] == {"weight": 1.0, "entitled": 0.5, "has": 0.0}
    assert 0 < places[1]["start"]["p50"] < places[0]["start"]["p50"] < places[2]["start"]["p50"]
    assert places[0]["start"]["p50"] <= places[0]["start"]["p90"] < places[0]["finish"]["p90"]
    assert str(other.tenant.id) not in str(places)
    with mine.transaction() as tx:
        (shown,) = explain.lines(tx, mine.tenant.id)
        assert (shown["queued"], shown["running"], shown["position"]) == (3, 0, 2)
        assert explain.lines(tx, uuid.uuid4()) == []
