"""Workers report themselves; the scheduler reads who is alive and what is taken."""

import uuid

from sqlalchemy import text

from manylora.ledger import workers
from manylora.ledger.tables import Worker


def report(tx, worker, **changes):
    given = dict(device_kind="cpu", slots=2, pinned=False, state="ready", facts={"pid": 1})
    return workers.report(tx, worker, **{**given, **changes})


def test_alive_is_who_was_heard_of_and_has_not_left(ledger):
    fresh, old, gone = (f"w-{uuid.uuid4().hex[:8]}" for _ in range(3))
    with ledger.transaction() as tx:
        for worker in (fresh, old):
            report(tx, worker)
        report(tx, gone, state="gone")
        tx.execute(
            text("UPDATE workers SET heartbeat_at = now() - interval '61 s' WHERE id = :i"),
            {"i": old},
        )
    with ledger.transaction() as tx:
        alive = {w.id for w in workers.alive(tx, within_seconds=60)}
        assert alive & {fresh, old, gone} == {fresh}
        assert report(tx, old, state="idle").state == "idle"  # heard of again
    with ledger.transaction() as tx:
        assert old in {w.id for w in workers.alive(tx, within_seconds=60)}
        for worker in (fresh, old):
            report(tx, worker, state="gone")


def test_only_a_worker_that_is_not_pinned_is_given_a_base_and_a_report_keeps_it(ledger):
    pinned, free = (f"w-{uuid.uuid4().hex[:8]}" for _ in range(2))
    with ledger.transaction() as tx:
        report(tx, pinned, pinned=True)
        report(tx, free)
        workers.assign(tx, pinned, ledger.base.name)
        workers.assign(tx, free, ledger.base.name)
    with ledger.transaction() as tx:
        assert tx.get(Worker, pinned).assigned_base is None
        assert report(tx, free).assigned_base == ledger.base.name
        for worker in (pinned, free):
            report(tx, worker, state="gone")


def test_a_slot_is_busy_from_the_dispatch_to_the_close(ledger):
    def busy():
        with ledger.transaction() as tx:
            return workers.busy(tx).get("q", 0)

    job_id = ledger.job()
    assert busy() == 0
    ledger.dispatch(job_id)
    assert busy() == 1
    ledger.running()
    assert busy() == 2


def test_a_scheduler_ticks(ledger):
    with ledger.transaction() as tx:
        workers.tick(tx, "s1")
        workers.tick(tx, "s1")
    with ledger.transaction() as tx:
        assert 0 <= workers.last_tick_age(tx) < 30
