"""The lease of one attempt, with time that passes only when the test says so."""

import threading

import pytest

from manylora.errors import LostError, UnavailableError
from manylora.ledger import events, jobs, leases
from manylora.ledger.database import Database
from tests.manylora.ledger.conftest import make_ledger
from tests.worker.conftest import until
from worker.lease import Lease

POINT = {"train_loss": 1.0, "seconds": 0.5, "tokens": 4}


class TurnedClock:
    """Time that a test turns on; it knows when somebody waits for it."""

    def __init__(self):
        self.now = 0.0
        self.waits = 0
        self._moved = threading.Condition()

    def monotonic(self):
        return self.now

    def wait(self, event, seconds):
        with self._moved:
            until_then = self.now + seconds
            self.waits += 1
            self._moved.notify_all()
            while self.now < until_then and not event.is_set():
                self._moved.wait(0.05)  # the event may be set without a notice
        return event.is_set()

    def turn(self, seconds):
        """Let time pass, and return when the waiting thread has done its work and waits again."""
        with self._moved:
            before = self.waits
            self.now += seconds
            self._moved.notify_all()
            assert self._moved.wait_for(lambda: self.waits > before, 30)


@pytest.fixture
def ledger(service):
    return make_ledger(service.database)


@pytest.fixture
def held(service, ledger):
    """(clock, lease, job id) of an attempt that runs."""
    job_id = ledger.running()
    clock = TurnedClock()
    lease = Lease(service.database, service.settings, clock, job_id, 1)
    until(lambda: clock.waits == 1)
    yield clock, lease, job_id
    lease.close()


def expires(ledger, job_id):
    with ledger.transaction() as tx:
        return jobs.attempts(tx, job_id)[0].lease_expires_at


def test_it_is_renewed_every_heartbeat_and_not_before(held, ledger):
    clock, _lease, job_id = held
    first = expires(ledger, job_id)
    for _ in range(9):
        clock.turn(1.0)
    assert expires(ledger, job_id) == first
    clock.turn(1.0)
    assert expires(ledger, job_id) > first


def test_the_first_step_goes_out_at_once(held, ledger):
    clock, lease, job_id = held
    lease.progress(1, 8, POINT)
    until(lambda: clock.waits == 2)
    assert clock.now == 0.0
    assert (ledger.get(job_id).step, ledger.get(job_id).total_steps) == (1, 8)


def test_progress_goes_out_within_a_second_and_in_one_piece(held, ledger):
    clock, lease, job_id = held
    lease.progress(1, 8, POINT)
    until(lambda: clock.waits == 2)
    lease.progress(2, 8, POINT)
    lease.progress(3, 8, POINT, "Step 3/8: training loss=1.00")
    assert ledger.get(job_id).step == 1
    clock.turn(1.0)
    job = ledger.get(job_id)
    assert (job.step, job.total_steps) == (3, 8)
    with ledger.transaction() as tx:
        assert [m.step for m in events.metrics(tx, job_id)] == [1, 2, 3]
        attempt = jobs.attempts(tx, job_id)[0]
        newest = events.page(tx, ledger.tenant.id, job_id, after=None, limit=1)[0][0]
    assert (attempt.last_step, attempt.device_seconds) == (3, 1.5)
    assert (newest.message, newest.type) == ("Step 3/8: training loss=1.00", "metrics")
    assert newest.data == {"step": 3, "total_steps": 8, **POINT}
    clock.turn(1.0)
    with ledger.transaction() as tx:
        assert newest.id == events.page(tx, ledger.tenant.id, job_id, after=None, limit=1)[0][0].id


def test_a_lease_that_is_gone_says_so_and_writes_no_more(held, ledger):
    _clock, lease, job_id = held
    with ledger.transaction() as tx:
        jobs.cancel(tx, ledger.tenant.id, job_id)
    before = ledger.books(job_id)
    assert not lease.lost.is_set()
    lease.progress(1, 8, POINT, "too late")
    assert lease.lost.wait(30)
    with pytest.raises(LostError):
        lease.flush()
    assert ledger.books(job_id) == before


def test_an_outage_loses_neither_the_lease_nor_what_was_noted(held, ledger, monkeypatch):
    clock, lease, job_id = held

    def away(*_, **__):
        raise UnavailableError("the database is away")

    monkeypatch.setattr(leases, "renew", away)
    lease.progress(1, 8, POINT, "first")
    until(lambda: clock.waits == 2)
    lease.progress(2, 8, POINT, "second")
    clock.turn(1.0)
    assert not lease.lost.is_set()
    assert ledger.get(job_id).step == 0
    monkeypatch.undo()
    clock.turn(1.0)
    with ledger.transaction() as tx:
        assert [m.step for m in events.metrics(tx, job_id)] == [1, 2]
    assert [e[3] for e in ledger.events(job_id)[-2:]] == ["first", "second"]


def test_closing_ends_the_thread_and_the_last_word_is_said_by_hand(held, ledger):
    _clock, lease, job_id = held
    lease.close()
    assert not lease._thread.is_alive()
    lease.progress(5, 8, POINT)
    lease.flush()
    assert ledger.get(job_id).step == 5


def test_a_database_that_cannot_be_reached_is_an_outage(service, ledger, unreachable):
    lease = Lease(unreachable, service.settings, TurnedClock(), ledger.running(), 1)
    lease.close()
    with pytest.raises(UnavailableError):
        lease.flush()


@pytest.fixture
def unreachable():
    from manylora.local.ports import free_ports

    database = Database(f"postgresql://u@127.0.0.1:{free_ports(1)[0]}/x")
    yield database
    database.close()
