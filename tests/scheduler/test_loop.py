"""A scheduler's rounds on real servers, with time turned by hand."""

import uuid

import pytest
import redis

from manylora import keys
from manylora.errors import UnavailableError
from manylora.ledger import jobs, leases, workers
from manylora.ledger.tables import Job
from scheduler import loop
from scheduler.loop import Scheduler
from tests.manylora.ledger.conftest import HEX, make_ledger

WORKER = f"w-{uuid.uuid4().hex[:8]}"


class Turned:
    """The scheduler's own time; the database's goes along with it."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def ledger(service):
    return make_ledger(service.database)


@pytest.fixture
def scheduler(service, monkeypatch):
    clock = Turned()
    monkeypatch.setattr(loop, "times", lambda tx: (clock.now, 1e6))
    changed = service.settings.model_copy(update={"lease_seconds": 60.0, "resend_seconds": 0.001})
    one = Scheduler(changed, clock)
    yield one
    one.app.close()
    one.database.close()


def pass_time(scheduler, seconds):
    """Rounds every ten seconds."""
    for _ in range(0, seconds, 10):
        scheduler.clock.now += 10
        scheduler.tick()


@pytest.fixture
def queue(ledger, service):
    """A ready worker of two slots, for the ledger's base."""
    name = keys.pool_queue(uuid.uuid4().hex, "cpu")
    with ledger.transaction() as tx:
        workers.report(
            tx, WORKER, device_kind="cpu", slots=2, pinned=True, facts={},
            assigned_base=ledger.base.name, fingerprint=HEX, queue=name, state="ready", note=None,
        )  # fmt: skip
    return name


def messages(service, queue):
    with redis.Redis.from_url(service.settings.broker_url.get_secret_value()) as broker:
        return broker.llen(keys.BROKER_PREFIX + queue)


def test_nobody_loses_a_lease_before_one_ttl_of_contact(ledger, scheduler):
    job_id = ledger.running(ttl=-1)
    scheduler.tick()
    pass_time(scheduler, 50)
    assert ledger.get(job_id).state == "running"
    pass_time(scheduler, 10)
    assert (ledger.get(job_id).state, ledger.get(job_id).failures_lost) == ("queued", 1)


def test_a_round_that_fails_begins_the_wait_anew(ledger, scheduler, monkeypatch):
    scheduler.tick()
    pass_time(scheduler, 60)
    job_id = ledger.running(ttl=-1)

    def away(*_, **__):
        raise UnavailableError("the database is away")

    with monkeypatch.context() as patched:
        patched.setattr(leases, "rescue", away)
        with pytest.raises(UnavailableError):
            scheduler.tick()
    pass_time(scheduler, 60)
    assert ledger.get(job_id).state == "running"
    pass_time(scheduler, 10)
    assert ledger.get(job_id).state == "queued"


def test_a_wakeup_that_was_lost_is_sent_again_and_claims_once(ledger, scheduler, service, queue):
    job_id = ledger.job()
    assert scheduler.tick() == 1
    assert messages(service, queue) == 1
    with redis.Redis.from_url(service.settings.broker_url.get_secret_value()) as broker:
        broker.delete(keys.BROKER_PREFIX + queue)
    assert scheduler.tick() == 0  # nothing new goes out
    assert messages(service, queue) == 1
    assert scheduler.tick() == 0
    assert messages(service, queue) == 2  # nobody took it; who comes second claims nothing
    with ledger.transaction() as tx:
        leases.claim(tx, job_id, 1, worker_id="w", ttl_seconds=60)
    scheduler.tick()
    assert messages(service, queue) == 2
    assert ledger.get(job_id).attempt == 1


def test_a_urgent_job_has_another_make_room(ledger, scheduler, queue):
    scheduler.tick()
    pass_time(scheduler, 60)
    low = [ledger.job(), ledger.job()]
    assert scheduler.tick() == 2
    with ledger.transaction() as tx:
        for job_id in low:
            leases.claim(tx, job_id, 1, worker_id=WORKER, ttl_seconds=600)
    urgent = ledger.job(priority=5)
    assert scheduler.tick() == 0
    asked = [ledger.get(job_id) for job_id in low if ledger.get(job_id).wish]
    assert [job.wish for job in asked] == ["preempt"]
    assert ledger.get(urgent).waiting_for == "a job of lower priority is making room"
    scheduler.tick()  # one slot is enough
    assert sum(ledger.get(job_id).wish is not None for job_id in low) == 1
    (victim,) = asked
    with ledger.transaction() as tx:
        leases.release(tx, victim.id, 1, actor="w", reason="r", counts=False)
    assert scheduler.tick() == 1
    assert ledger.get(urgent).state == "dispatched"
    waits = ledger.get(victim.id)
    assert (waits.state, waits.preemptions, waits.failures) == ("queued", 1, 0)


def test_a_paused_job_is_not_sent_out(ledger, scheduler, queue):
    job_id = ledger.job()
    with ledger.transaction() as tx:
        jobs.pause(tx, ledger.tenant.id, job_id)
    assert scheduler.tick() == 0
    with ledger.transaction() as tx:
        jobs.resume(tx, ledger.tenant.id, job_id)
        assert tx.get(Job, job_id).state == "queued"
    assert scheduler.tick() == 1
