"""Pause, resume, preempt, back-off and wake-ups sent again: verbs of more than one move."""

import pytest
from sqlalchemy import func, update

from manylora.errors import LostError, StateError
from manylora.ledger import jobs, leases, workers
from manylora.ledger.tables import Job


def pause(ledger, job_id):
    with ledger.transaction() as tx:
        return jobs.pause(tx, ledger.tenant.id, job_id)


def resume(ledger, job_id):
    with ledger.transaction() as tx:
        return jobs.resume(tx, ledger.tenant.id, job_id)


def hand_back(ledger, job_id, counts=False, **more):
    with ledger.transaction() as tx:
        return leases.release(tx, job_id, 1, actor="w1", reason="r", counts=counts, **more)


def renew(ledger, job_id):
    with ledger.transaction() as tx:
        return leases.renew(tx, job_id, 1, ttl_seconds=60, step=3, device_seconds=0.5, points=[])


@pytest.mark.parametrize("state", ["validating_files", "queued", "dispatched"])
def test_a_job_without_a_worker_is_paused_at_once_and_goes_on_where_it_was(ledger, state):
    job_id = ledger.job("validating_files" if state == "validating_files" else "queued")
    if state == "dispatched":
        ledger.dispatch(job_id)
    assert pause(ledger, job_id).state == "paused"
    assert pause(ledger, job_id).state == "paused"
    if state == "dispatched":
        assert ledger.attempts(job_id) == {1: "paused"}  # its slot is free
        with ledger.transaction() as tx, pytest.raises(LostError):
            leases.claim(tx, job_id, 1, worker_id="w", ttl_seconds=60)
    again = "validating_files" if state == "validating_files" else "queued"
    assert resume(ledger, job_id).state == again
    assert resume(ledger, job_id).state == again


def test_a_running_job_is_asked_and_its_worker_hears_of_it(ledger):
    job_id = ledger.running()
    assert renew(ledger, job_id) is None
    asked = pause(ledger, job_id)
    assert (asked.state, asked.wish) == ("running", "pause")
    assert renew(ledger, job_id) == "pause"
    before = ledger.books(job_id)
    pause(ledger, job_id)
    assert ledger.books(job_id) == before
    assert hand_back(ledger, job_id)
    now = ledger.get(job_id)
    assert (now.state, now.wish, now.failures) == ("paused", None, 0)
    assert ledger.attempts(job_id) == {1: "released"}
    assert ledger.events(job_id)[-1] == ("running", "paused", 1, "Paused at step 3")


def test_a_pause_taken_back_before_the_worker_left_is_none(ledger):
    job_id = ledger.running()
    pause(ledger, job_id)
    assert resume(ledger, job_id).wish is None
    assert renew(ledger, job_id) is None
    pause(ledger, job_id)
    resume(ledger, job_id)
    hand_back(ledger, job_id)  # the worker had heard of it already
    assert ledger.get(job_id).state == "queued"


def test_a_pause_outranks_a_preemption(ledger):
    job_id = ledger.running()
    with ledger.transaction() as tx:
        leases.preempt(tx, job_id, 1)
    pause(ledger, job_id)
    hand_back(ledger, job_id)
    assert (ledger.get(job_id).state, ledger.get(job_id).preemptions) == ("paused", 0)


def test_a_worker_that_dies_while_its_job_is_to_pause_leaves_it_paused_and_one_failure_older(
    ledger,
):
    job_id = ledger.running(ttl=-1)
    pause(ledger, job_id)
    ledger.rescue()
    now = ledger.get(job_id)
    assert (now.state, now.failures_lost, now.wish) == ("paused", 1, None)


def test_a_preempted_job_keeps_its_place_and_is_left_alone_after_its_share(ledger):
    job_id = ledger.running()
    queued_at = ledger.get(job_id).queued_at
    with ledger.transaction() as tx:
        leases.preempt(tx, job_id, 1, most_preemptions=1)
    with ledger.transaction() as tx, pytest.raises(LostError):
        leases.preempt(tx, job_id, 1, most_preemptions=9)  # asked already
    hand_back(ledger, job_id)
    now = ledger.get(job_id)
    assert (now.state, now.preemptions, now.failures) == ("queued", 1, 0)
    assert now.queued_at == queued_at
    assert ledger.attempts(job_id) == {1: "preempted"}
    ledger.start(job_id)
    with ledger.transaction() as tx, pytest.raises(LostError):
        leases.preempt(tx, job_id, 2, most_preemptions=1)


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_what_is_over_is_neither_paused_nor_resumed(ledger, state):
    job_id = ledger.job(state)
    for ask, word in ((pause, "paused"), (resume, "resumed")):
        with pytest.raises(StateError, match=f"{state} already and cannot be {word}"):
            ask(ledger, job_id)


@pytest.mark.parametrize(("kind", "most"), [("lost", 3), ("oom", 2), ("infra", 5)])
def test_each_kind_of_failure_has_its_own_budget(ledger, kind, most):
    job_id = ledger.job()
    with ledger.transaction() as tx:  # many of the other kinds change nothing
        tx.execute(
            update(Job).where(Job.id == job_id).values(
                {f"failures_{k}": 99 for k in ("lost", "oom", "infra") if k != kind}
            )
        )  # fmt: skip
    for number in range(1, most + 1):
        with ledger.transaction() as tx:
            tx.execute(update(Job).where(Job.id == job_id).values(not_before=None))
        attempt = ledger.start(job_id)
        with ledger.transaction() as tx:
            again = leases.release(
                tx, job_id, attempt, actor="w", reason="r", counts=True, kind=kind, code="c"
            )
        assert again == (number < most)
        assert ledger.attempts(job_id)[attempt] == kind
    now = ledger.get(job_id)
    assert (now.state, now.error_code, now.error_message) == (
        "failed", "c", f"Given up after {most} tries: r",
    )  # fmt: skip
    assert (getattr(now, f"failures_{kind}"), now.failures) == (most, most)


def test_what_the_store_let_down_waits_a_while(ledger):
    job_id = ledger.running()
    hand_back(ledger, job_id, counts=True, kind="infra")
    with ledger.transaction() as tx, pytest.raises(LostError):
        leases.dispatch(tx, job_id, queue="q", deadline_seconds=60)
    with ledger.transaction() as tx:
        past = func.clock_timestamp()
        tx.execute(update(Job).where(Job.id == job_id).values(not_before=past))
    assert ledger.dispatch(job_id) == 2
    assert ledger.get(job_id).not_before is None


def mine(ledger, hints):
    with ledger.transaction() as tx:
        return [h for h in hints if tx.get(Job, h[1]).tenant_id == ledger.tenant.id]


def test_a_wakeup_is_sent_again_once_per_time_and_not_after_its_claim(ledger):
    job_id = ledger.job()
    with ledger.transaction() as tx:
        leases.dispatch(tx, job_id, queue="q7", deadline_seconds=60, resend_seconds=-1)
    with ledger.transaction() as tx:
        assert mine(ledger, leases.resend(tx, resend_seconds=60)) == [("q7", job_id, 1)]
    with ledger.transaction() as tx:
        assert mine(ledger, leases.resend(tx, resend_seconds=60)) == []
    claimed = ledger.job()
    with ledger.transaction() as tx:
        leases.dispatch(tx, claimed, queue="q", deadline_seconds=60, resend_seconds=-1)
        leases.claim(tx, claimed, 1, worker_id="w", ttl_seconds=60)
    with ledger.transaction() as tx:
        assert mine(ledger, leases.resend(tx, resend_seconds=60)) == []


def test_a_rescue_that_lets_leases_be_takes_wakeups_only(ledger):
    late, dead = ledger.job(), ledger.running(ttl=-1)
    ledger.dispatch(late, deadline=-1)
    with ledger.transaction() as tx:
        assert leases.rescue(tx, leases=False) == [late]
    assert ledger.get(dead).state == "running"
    with ledger.transaction() as tx:
        assert workers.busy(tx)["q"] == 1
        assert leases.rescue(tx) == [dead]
