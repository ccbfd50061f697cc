"""Jobs: created once, found by their tenant, moved together with their event or not at all."""

import threading

import pytest

from manylora import keys
from manylora.errors import LostError, StateError
from manylora.ledger import jobs
from manylora.ledger.tables import Job


def test_a_new_job_waits_for_validation_with_its_first_event(ledger):
    job_id = ledger.job("validating_files")
    job = ledger.get(job_id)
    assert (job.state, job.attempt, job.failures, job.step) == ("validating_files", 0, 0, 0)
    assert ledger.events(job_id) == [
        (None, "validating_files", 0, f"Created fine-tuning job: {job_id}")
    ]


def test_one_idempotency_key_is_one_job_even_at_once(ledger):
    made, barrier = [], threading.Barrier(4)

    def create():
        barrier.wait(20)
        made.append(ledger.job(idempotency_key="k"))

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 4
    assert len(set(made)) == 1
    assert len(ledger.events(made[0])) == 1
    assert ledger.job(idempotency_key="other") != made[0]


def test_a_move_that_rolls_back_takes_its_event_along(ledger):
    job_id = ledger.job()
    before = ledger.books(job_id)

    def broken():
        with ledger.transaction() as tx:
            jobs.move(tx, job_id, "cancel", actor="x", message="m")
            tx.flush()
            raise RuntimeError("the power went out")

    with pytest.raises(RuntimeError):
        broken()
    assert ledger.books(job_id) == before


def test_an_event_that_cannot_be_written_takes_its_move_along(ledger, monkeypatch):
    job_id = ledger.job()
    before = ledger.books(job_id)
    monkeypatch.setattr(keys, "event_id", lambda: "x" * 41)  # its column holds 40
    with pytest.raises(Exception, match="too long"), ledger.transaction() as tx:
        jobs.move(tx, job_id, "cancel", actor="x", message="m")
    assert ledger.books(job_id) == before


@pytest.mark.parametrize("state", ["validating_files", "queued", "dispatched", "running", "paused"])
def test_a_job_that_is_not_over_is_cancelled_once(ledger, state):
    job_id = ledger.job(state)
    with ledger.transaction() as tx:
        assert jobs.cancel(tx, ledger.tenant.id, job_id).state == "cancelled"
    assert ledger.get(job_id).finished_at is not None
    with ledger.transaction() as tx, pytest.raises(StateError, match="cancelled already"):
        jobs.cancel(tx, ledger.tenant.id, job_id)


@pytest.mark.parametrize("state", ["succeeded", "failed"])
def test_a_job_that_is_over_cannot_be_cancelled(ledger, state):
    job_id = ledger.job(state)
    before = ledger.books(job_id)
    with ledger.transaction() as tx, pytest.raises(StateError) as refused:
        jobs.cancel(tx, ledger.tenant.id, job_id)
    assert refused.value.error_code == "invalid_job_state"
    assert ledger.books(job_id) == before


def test_pages_are_newest_first_and_follow_each_other(ledger):
    made = [ledger.job(job_metadata={"n": str(n % 2)}) for n in range(5)]
    with ledger.transaction() as tx:
        first, more = jobs.page(tx, ledger.tenant.id, after=None, limit=3)
        assert ([j.id for j in first], more) == (made[:1:-1], True)
        rest, more = jobs.page(tx, ledger.tenant.id, after=first[-1].id, limit=3)
        assert ([j.id for j in rest], more) == (made[1::-1], False)
        odd, _ = jobs.page(tx, ledger.tenant.id, after=None, limit=9, metadata={"n": "1"})
        assert [j.id for j in odd] == [made[3], made[1]]


@pytest.mark.parametrize("attempt", [0, 1])
def test_the_database_itself_refuses_a_half_dispatched_job(ledger, attempt):
    job_id = ledger.job("running", attempt=attempt)
    with pytest.raises(Exception, match="jobs_dispatched"), ledger.transaction() as tx:
        tx.get(Job, job_id).state = "dispatched"
    with ledger.transaction() as tx, pytest.raises(LostError):
        jobs.move(tx, job_id, "claim", actor="w", message="m", attempt=attempt)
