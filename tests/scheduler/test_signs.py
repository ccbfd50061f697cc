"""A scheduler's metrics, read from a real ledger, and the probe beside it."""

import threading

import httpx2
import pytest
from sqlalchemy import text

from manylora.ledger import workers
from manylora.metrics import SchedulerMetrics
from manylora.probe import Probe
from scheduler.contact import Contact
from scheduler.gauges import Gauges
from scheduler.loop import Scheduler
from tests.manylora.ledger.conftest import make_ledger
from tests.manylora.test_metrics import value
from tests.manylora.test_probe import free_port


class Turned:
    """A clock whose time passes when the test says so."""

    now = 0.0

    def monotonic(self):
        return self.now

    def wait(self, event, seconds):
        return event.wait(0.01)


@pytest.fixture
def ledger(service):
    return make_ledger(service.database)


@pytest.fixture
def gauges(service):
    metrics, clock = SchedulerMetrics(), Turned()
    made = Gauges(service.database, metrics, clock, worker_silence_seconds=60)
    return made, metrics, clock


def worker(ledger, name, state="ready", **columns):
    with ledger.transaction() as tx:
        workers.report(
            tx, name, device_kind="cpu", slots=4, pinned=True, fingerprint=None, queue="q",
            state=state, note=None, facts={}, assigned_base=ledger.base.name, **columns,
        )  # fmt: skip


def test_the_ledger_is_shown_by_base_and_state(ledger, gauges):
    read, metrics, _ = gauges
    base = ledger.base.name
    ledger.job()
    ledger.job()
    ledger.job("validating_files")
    ledger.running()
    worker(ledger, "w1")
    worker(ledger, "w2", "loading")
    with ledger.transaction() as tx:
        tx.execute(
            text("UPDATE jobs SET queued_at = queued_at - interval '90 s' WHERE base = :b"),
            {"b": base},
        )
    assert read.refresh() is False
    assert value(metrics, "jobs", base=base, state="queued") == 2
    assert value(metrics, "jobs", base=base, state="validating_files") == 1
    assert value(metrics, "jobs", base=base, state="running") == 1
    assert 90 <= value(metrics, "jobs_oldest_waiting_seconds", base=base) < 150
    assert value(metrics, "workers", base=base, state="ready") == 1
    assert value(metrics, "workers", base=base, state="loading") == 1
    assert value(metrics, "slots", base=base) == 4
    assert value(metrics, "slots_busy", base=base) == 1


def test_they_are_read_again_after_some_seconds_and_what_is_gone_is_dropped(ledger, gauges):
    read, metrics, clock = gauges
    base = ledger.base.name
    job_id = ledger.running()
    read.refresh()
    ledger.publish(job_id)
    read.refresh()  # too early
    assert value(metrics, "jobs", base=base, state="running") == 1
    clock.now += 5
    read.refresh()
    assert value(metrics, "jobs", base=base, state="running") is None
    assert value(metrics, "jobs", base=base, state="queued") == 0
    assert value(metrics, "jobs_oldest_waiting_seconds", base=base) is None


def test_a_base_with_jobs_and_no_worker_has_no_slots(ledger, gauges):
    """What the alert of a base nobody serves is made of."""
    read, metrics, _ = gauges
    ledger.job()
    read.refresh()
    assert value(metrics, "jobs", base=ledger.base.name, state="queued") == 1
    assert value(metrics, "slots", base=ledger.base.name) is None


def test_a_scheduler_counts_its_rounds_dispatches_and_rescues(service, ledger, monkeypatch):
    monkeypatch.setattr(Contact, "settled", property(lambda _: True))
    monkeypatch.setattr(Contact, "silent", lambda _, now, held: {lease[:2] for lease in held})
    scheduler = Scheduler(service.settings)
    try:
        lost = ledger.running(ttl=0.0)
        scheduler._turn()
        show = scheduler.metrics
        assert ledger.get(lost).state == "queued"
        assert value(show, "scheduler_rescued_total") == 1
        assert value(show, "scheduler_ticks_total", outcome="ok") == 1
        assert value(show, "scheduler_dispatched_total") == 0
        with ledger.transaction() as tx:
            tx.execute(text("UPDATE workers SET fingerprint = NULL"))
        worker(ledger, "w9")
        with ledger.transaction() as tx:
            tx.execute(
                text("UPDATE workers SET fingerprint = :f WHERE id = 'w9'"),
                {"f": ledger.base.fingerprint},
            )
        scheduler._turn()
        assert ledger.get(lost).state == "dispatched"
        assert value(show, "scheduler_dispatched_total") == 1
    finally:
        scheduler.app.close()
        scheduler.database.close()


def test_its_probe_answers_while_it_runs(service, monkeypatch):
    ports = []
    real = Probe.start
    monkeypatch.setattr(Probe, "start", lambda *a: ports.append(real(*a)) or ports[-1])
    settings = service.settings.model_copy(update={"metrics_port": free_port()})
    scheduler = Scheduler(settings)
    ticked = threading.Event()
    tick = scheduler.tick
    scheduler.tick = lambda: (tick(), ticked.set())[0]
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    try:
        assert ticked.wait(30)
        url = f"http://127.0.0.1:{ports[0]}"
        assert httpx2.get(f"{url}/healthz", timeout=60).json()["status"] == "ok"
        ready = httpx2.get(f"{url}/readyz", timeout=30)
        assert ready.json()["checks"] == dict.fromkeys(
            ("database", "schema", "store", "broker", "scheduler"), "ok"
        )
        assert (
            b"manylora_scheduler_tick_seconds_count"
            in httpx2.get(f"{url}/metrics", timeout=60).content
        )
    finally:
        scheduler.stop()
        thread.join(30)
    assert not thread.is_alive()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/healthz", timeout=60)


def test_a_round_that_never_ends_is_not_alive(service):
    clock = Turned()
    scheduler = Scheduler(service.settings, clock)
    try:
        assert scheduler.alive()
        clock.now += 121
        assert not scheduler.alive()
        scheduler._turn()
        assert scheduler.alive()
    finally:
        scheduler.app.close()
        scheduler.database.close()
