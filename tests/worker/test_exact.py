"""A job goes on with the numerics it began with, or says that it did not."""

import json

import pytest
from sqlalchemy import select, text

from manylora.ledger import adapters, workers
from manylora.ledger.tables import Event
from tests.worker.conftest import until

LONG = dict(count=80, n_epochs=15)


@pytest.fixture
def begun(bench):
    """A job with a checkpoint, handed back by its worker."""
    job_id = bench.job(seed=50, **LONG)
    first = bench.supervisor("w1", checkpoint_seconds=0.1)
    thread, outcomes = bench.begin(first, job_id, bench.dispatch(job_id))
    until(lambda: bench.checkpoints(job_id))
    first.draining.set()
    thread.join(60)
    assert outcomes == ["released"]
    # Workers of tests before this one may have held the same base.
    with bench.database.transaction() as tx:
        tx.execute(text("UPDATE workers SET heartbeat_at = heartbeat_at - interval '11 minutes'"))
    return job_id


def report(bench, numerics, fingerprint):
    """A worker of those numerics, heard of just now."""
    with bench.database.transaction() as tx:
        workers.report(
            tx, "other", device_kind="cpu", slots=1, pinned=False, fingerprint=fingerprint,
            queue="q", state="gone", note=None, facts={"numerics": numerics},
        )  # fmt: skip


def manifest_of(bench, job_id):
    with bench.database.transaction() as tx:
        return json.loads(bench.service.store.get_bytes(adapters.of_job(tx, job_id).manifest_key))


def test_with_nobody_like_the_first_it_goes_on_and_says_so(bench, begun, monkeypatch):
    ours = bench.link.numerics
    monkeypatch.setattr(bench.link, "numerics", {**ours, "isa": "another"})
    assert bench.supervisor("w2").run(begun, bench.dispatch(begun)) == "succeeded"
    manifest = manifest_of(bench, begun)
    assert (manifest["exact"], manifest["numerics"]["isa"]) == (False, "another")
    with bench.database.transaction() as tx:
        (said,) = tx.scalars(
            select(Event).where(Event.job_id == begun, Event.data == {"exact": False})
        )
    assert said.level == "warn"
    assert said.message.startswith("No worker like the one it began on (isa differ)")


def test_while_there_was_one_lately_it_waits_for_it(bench, begun, monkeypatch):
    ours = bench.link.numerics
    fingerprint = bench.get(begun).base_fingerprint
    report(bench, ours, fingerprint)
    monkeypatch.setattr(bench.link, "numerics", {**ours, "threads": 64})
    assert bench.supervisor("w2").run(begun, bench.dispatch(begun)) == "released"
    job = bench.get(begun)
    assert (job.state, job.failures) == ("queued", 0)
    assert job.not_before is not None
    # Ten minutes later nobody of that kind was seen: then it goes on.
    with bench.database.transaction() as tx:
        tx.execute(text("UPDATE workers SET heartbeat_at = heartbeat_at - interval '11 minutes'"))
        tx.execute(text("UPDATE jobs SET not_before = NULL WHERE id = :id"), {"id": begun})
    assert bench.supervisor("w2").run(begun, bench.dispatch(begun)) == "succeeded"
    assert manifest_of(bench, begun)["exact"] is False


def test_the_same_numerics_are_exact(bench, begun):
    assert bench.supervisor("w2").run(begun, bench.dispatch(begun)) == "succeeded"
    assert manifest_of(bench, begun)["exact"] is True
