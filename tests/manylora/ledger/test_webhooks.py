"""The outbox: written with a job's end, claimed once at a time, settled by the token."""

import datetime as dt
import statistics

import pytest
from sqlalchemy import select, text

from manylora.errors import LostError, NotFoundError, QuotaError
from manylora.ledger import events, jobs, leases, webhooks
from manylora.ledger.tables import Delivery, Webhook
from manylora.ledger.webhooks import MOST_ATTEMPTS, TYPES, Claimed

ALL = set(TYPES.values())


@pytest.fixture(autouse=True)
def _nothing_else_is_due(database):
    """All tests share one database."""
    with database.transaction() as tx:
        tx.execute(text("DELETE FROM deliveries"))


def add(ledger, url="https://a.example/", types=ALL, most=10):
    with ledger.transaction() as tx:
        return webhooks.add(tx, ledger.tenant.id, url=url, types=types, most=most).id


def claim(ledger, limit=10, lease=60.0, but=()):
    with ledger.transaction() as tx:
        return webhooks.claim(tx, limit=limit, lease_seconds=lease, but=but)


def rows(ledger):
    with ledger.transaction() as tx:
        return list(tx.scalars(select(Delivery).order_by(Delivery.created_at)))


def make_due(ledger):
    with ledger.transaction() as tx:
        tx.execute(
            text("UPDATE deliveries SET next_at = clock_timestamp() WHERE settled_at IS NULL")
        )


def end(ledger, how="cancel"):
    """The id of a job that ended so."""
    if how == "cancel":
        job_id = ledger.job()
        with ledger.transaction() as tx:
            jobs.cancel(tx, ledger.tenant.id, job_id)
    elif how == "succeed":
        job_id = ledger.running()
        ledger.publish(job_id)
    elif how == "fail":
        job_id = ledger.running()
        with ledger.transaction() as tx:
            leases.fail(tx, job_id, 1, worker_id="w1", code="x", message="y")
    else:
        job_id = ledger.job("validating_files")
        with ledger.transaction() as tx:
            jobs.move(tx, job_id, "reject", actor="scheduler", told="bad", code="x", param=None)
    return job_id


ENDS = {"cancel": "cancelled", "succeed": "succeeded", "fail": "failed", "reject": "failed"}


@pytest.mark.parametrize("how", ENDS)
def test_every_end_of_a_job_is_one_message_to_each_endpoint(ledger, how):
    mine = {add(ledger), add(ledger)}
    job_id = end(ledger, how)
    found = rows(ledger)
    assert {row.webhook_id for row in found} == mine
    assert len({row.message_id for row in found}) == 1
    assert {(row.job_id, row.type, row.state, row.attempts) for row in found} == {
        (job_id, f"fine_tuning.job.{ENDS[how]}", "pending", 0)
    }
    assert {row.created_at for row in found} == {ledger.get(job_id).finished_at}


def test_other_moves_and_other_tenants_say_nothing(ledger, stranger):
    with ledger.transaction() as tx:
        webhooks.add(tx, stranger.id, url="https://b.example/", types=ALL, most=1)
    job_id = ledger.running()
    end(ledger, "succeed")
    assert rows(ledger) == []
    add(ledger, types={TYPES["failed"]})
    ledger.publish(job_id)
    assert rows(ledger) == []
    end(ledger, "fail")
    assert len(rows(ledger)) == 1


def test_a_move_that_does_not_happen_leaves_no_message(ledger):
    add(ledger)
    job_id = ledger.running()
    with pytest.raises(LostError), ledger.transaction() as tx:
        leases.fail(tx, job_id, 2, worker_id="w2", code="x", message="y")
    with ledger.transaction() as tx:
        leases.fail(tx, job_id, 1, worker_id="w1", code="x", message="y")
        tx.flush()
        assert tx.scalar(select(Delivery.state).where(Delivery.job_id == job_id)) == "pending"
        tx.rollback()
    assert rows(ledger) == []


def test_an_endpoint_removed_while_a_job_ends_does_not_undo_the_end(ledger):
    """The end's transaction has seen the endpoint; its removal commits first."""
    mine = add(ledger)
    job_id = ledger.running()
    with ledger.transaction() as tx:
        leases.fail(tx, job_id, 1, worker_id="w1", code="x", message="y")
        tx.flush()
        with ledger.transaction() as other:
            webhooks.remove(other, ledger.tenant.id, mine)
    assert ledger.get(job_id).state == "failed"
    assert claim(ledger) == []
    assert [row.state for row in rows(ledger)] == ["dead"]


def test_a_claim_takes_one_for_each_endpoint_the_longest_due_first(ledger):
    first, second = add(ledger), add(ledger)
    oldest, newer = end(ledger), end(ledger)
    got = claim(ledger)
    assert {(one.webhook_id, one.job_id) for one in got} == {(first, oldest), (second, oldest)}
    assert {one.attempt for one in got} == {1}
    assert [one.job_id for one in claim(ledger, but=[first])] == [newer]
    assert [one.webhook_id for one in claim(ledger)] == [first]
    assert claim(ledger) == []  # all four are leased


def test_two_senders_never_hold_the_same_message(ledger):
    add(ledger)
    end(ledger)
    end(ledger)
    with ledger.transaction() as tx:
        (one,) = webhooks.claim(tx, limit=9, lease_seconds=60)
        with ledger.transaction() as other:
            (two,) = webhooks.claim(other, limit=9, lease_seconds=60)
    assert one.message_id != two.message_id


def test_a_sender_that_dies_loses_its_message_to_the_next_with_the_same_id(ledger):
    add(ledger)
    end(ledger)
    (dies,) = claim(ledger, lease=0.0)
    (next_one,) = claim(ledger)
    assert next_one.message_id == dies.message_id
    assert (dies.attempt, next_one.attempt) == (1, 2)
    with ledger.transaction() as tx:  # a failure told late does not end the newer claim
        assert webhooks.failed(tx, dies, status=500, error="late") == ""
    assert claim(ledger) == []
    with ledger.transaction() as tx:  # a success told late is one
        webhooks.delivered(tx, dies, 204)
    (row,) = rows(ledger)
    assert (row.state, row.last_status, row.attempts) == ("delivered", 204, 2)
    with ledger.transaction() as tx:
        assert webhooks.failed(tx, next_one, status=500, error="late") == ""
    assert rows(ledger)[0].state == "delivered"


def test_failures_are_tried_again_for_a_day_then_given_up_with_an_event(ledger):
    mine = add(ledger)
    job_id = end(ledger)
    waited = 0.0
    for attempt in range(1, MOST_ATTEMPTS + 1):
        make_due(ledger)
        (one,) = claim(ledger)
        assert one.attempt == attempt
        with ledger.transaction() as tx:
            state = webhooks.failed(tx, one, status=500, error="it answered HTTP 500")
        (row,) = rows(ledger)
        assert row.state == state == ("dead" if attempt == MOST_ATTEMPTS else "pending")
        assert (row.last_status, row.last_error) == (500, "it answered HTTP 500")
        if state == "pending":
            assert claim(ledger) == []  # not before its pause is over
            waited += webhooks.pause(one)
    assert 22 * 3600 < waited < 27 * 3600
    assert claim(ledger) == []
    with ledger.transaction() as tx:
        last, *_ = events.page(tx, ledger.tenant.id, job_id, after=None, limit=1)[0]
    assert last.level == "warn"
    assert f"Webhook {mine} was not reached in 16 tries" in last.message
    assert last.data == {"webhook": mine, "message": one.message_id}


def test_what_is_two_days_old_gets_three_tries(ledger):
    """An endpoint that hangs is tried seldom: its backlog must not grow for ever."""
    add(ledger)
    end(ledger)
    with ledger.transaction() as tx:
        tx.execute(text("UPDATE deliveries SET created_at = created_at - interval '49 hours'"))
    states = []
    for _ in range(3):
        make_due(ledger)
        (one,) = claim(ledger)
        with ledger.transaction() as tx:
            states.append(webhooks.failed(tx, one, status=None, error="no answer"))
    assert states == ["pending", "pending", "dead"]


def test_pauses_double_to_four_hours_and_differ_by_a_tenth():
    def of(message, attempt):
        now = dt.datetime.now(dt.UTC)
        return webhooks.pause(
            Claimed(message, "we_1", None, "j", "t", now, attempt, "https://a/", "whsec_")
        )

    for attempt, seconds in ((1, 15), (2, 30), (5, 240), (11, 14_400), (16, 14_400)):
        found = [of(f"evt_{n}", attempt) for n in range(200)]
        assert min(found) >= seconds * 0.9
        assert max(found) <= seconds * 1.1
        assert statistics.pstdev(found) > seconds * 0.04
        assert found == [of(f"evt_{n}", attempt) for n in range(200)]  # nothing is left to chance


def test_secrets_are_long_differ_and_vanish_with_the_endpoint(ledger):
    first, second = add(ledger), add(ledger)
    end(ledger)
    with ledger.transaction() as tx:
        kept = {row.id: row.secret for row in webhooks.page(tx, ledger.tenant.id)}
    assert len(set(kept.values())) == 2
    assert all(s.startswith("whsec_") and len(s) == 50 for s in kept.values())
    one = claim(ledger)[0]
    assert kept[one.webhook_id] not in repr(one)
    assert "a.example" not in repr(one)
    with ledger.transaction() as tx:
        webhooks.remove(tx, ledger.tenant.id, first)
    with ledger.transaction() as tx:
        assert [row.id for row in webhooks.page(tx, ledger.tenant.id)] == [second]
        assert tx.get(Webhook, first).secret == ""
        with pytest.raises(NotFoundError):
            webhooks.remove(tx, ledger.tenant.id, first)
    assert {r.webhook_id: r.state for r in rows(ledger)} == {first: "dead", second: "pending"}


def test_a_tenant_may_have_so_many_and_no_more(ledger, stranger):
    for _ in range(3):
        add(ledger, most=3)
    with pytest.raises(QuotaError):
        add(ledger, most=3)
    with ledger.transaction() as tx:
        webhooks.add(tx, stranger.id, url="https://b.example/", types=ALL, most=3)
        mine = webhooks.page(tx, ledger.tenant.id)
        webhooks.remove(tx, ledger.tenant.id, mine[0].id)
    add(ledger, most=3)


def test_what_was_settled_long_ago_is_forgotten(ledger):
    mine = add(ledger)
    end(ledger)
    end(ledger)
    (one,) = claim(ledger)
    with ledger.transaction() as tx:
        webhooks.delivered(tx, one, 200)
        assert webhooks.counts(tx) == {"pending": 1, "dead": 0}
        webhooks.remove(tx, ledger.tenant.id, mine)
        assert webhooks.prune(tx) == 0
        tx.execute(text("UPDATE deliveries SET settled_at = settled_at - interval '31 days'"))
        tx.execute(text("UPDATE webhooks SET deleted_at = deleted_at - interval '31 days'"))
        assert webhooks.prune(tx, limit=1) == 1
        assert tx.get(Webhook, mine) is not None  # one message of it is left
        assert webhooks.prune(tx) == 1
        tx.expire_all()
        assert tx.get(Webhook, mine) is None
    assert rows(ledger) == []
