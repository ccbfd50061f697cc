"""Bases: registered in two steps, kept while needed, known to tenants by name only when ready."""

import uuid

import pytest

from manylora.errors import ConflictError, NotFoundError, UnknownBaseError
from manylora.ledger import adapters, bases, workers
from manylora.ledger.tables import Base, Job, Worker
from tests.manylora.ledger.conftest import HEX
from tests.manylora.ledger.test_leases import in_thread, until_someone_waits


def start(ledger, name, fingerprint=HEX):
    with ledger.transaction() as tx:
        return bases.start(
            tx, name=name, fingerprint=fingerprint, dtype="float32", architecture="a",
            source="s", parameters=1, hidden_size=1, bytes=1, chat_template=None, files=[],
            layers={},
        )  # fmt: skip


@pytest.fixture
def name():
    return f"b-{uuid.uuid4().hex[:8]}"


def test_a_base_is_named_once_its_files_are_there(ledger, name):
    start(ledger, name)
    with ledger.transaction() as tx, pytest.raises(UnknownBaseError) as unknown:
        bases.get(tx, name)
    assert ledger.base.name in unknown.value.hint
    start(ledger, name, "cd" * 32)  # begun again with other files: nothing was promised yet
    with ledger.transaction() as tx:
        assert bases.finish(tx, name).state == "ready"
        assert bases.get(tx, name).fingerprint == "cd" * 32
        assert name in [b.name for b in bases.ready(tx)]
    start(ledger, name, "cd" * 32)  # the same again
    with pytest.raises(ConflictError):
        start(ledger, name, HEX)
    with ledger.transaction() as tx, pytest.raises(NotFoundError):
        bases.finish(tx, "none-such")


@pytest.mark.parametrize("state", ["validating_files", "queued", "dispatched", "running", "paused"])
def test_a_base_that_an_open_job_needs_stays(ledger, state):
    job_id = ledger.job(state)
    with ledger.transaction() as tx, pytest.raises(ConflictError, match="1 job"):
        bases.remove(tx, ledger.base.name)
    with ledger.transaction() as tx:
        assert bases.get(tx, ledger.base.name)
        tx.get(Job, job_id).dispatch_deadline = None
        tx.get(Job, job_id).state = "failed"
    with ledger.transaction() as tx:
        bases.remove(tx, ledger.base.name)
    with ledger.transaction() as tx:
        with pytest.raises(UnknownBaseError):
            bases.get(tx, ledger.base.name)
        assert tx.get(Base, ledger.base.name) is not None  # the job's history names it


def test_a_base_nobody_used_goes_and_its_workers_are_free(ledger, name):
    start(ledger, name)
    worker = f"w-{name}"
    with ledger.transaction() as tx:
        bases.finish(tx, name)
        workers.report(tx, worker, device_kind="cpu", slots=1, pinned=False, state="idle", facts={})
        workers.assign(tx, worker, name)
    with ledger.transaction() as tx:
        assert tx.get(Worker, worker).assigned_base == name
        bases.remove(tx, name)
    with ledger.transaction() as tx:
        assert tx.get(Base, name) is None
        assert tx.get(Worker, worker).assigned_base is None
        workers.report(tx, worker, state="gone", device_kind="cpu", slots=1, pinned=False, facts={})
        with pytest.raises(NotFoundError):
            bases.remove(tx, name)


def test_a_base_is_not_removed_under_a_job_that_is_being_made(ledger):
    ledger.running()  # a base that was used is kept as a row, and just not offered any more

    def remove():
        with ledger.transaction() as tx:
            bases.remove(tx, ledger.base.name)

    with ledger.transaction() as tx:
        bases.get(tx, ledger.base.name, held=True)
        remover, raised = in_thread(remove)
        until_someone_waits(ledger)
    remover.join(20)
    assert [type(e) for e in raised] == [ConflictError]


def test_a_job_is_not_made_on_a_base_that_is_being_removed(ledger):
    job_id = ledger.running()
    ledger.publish(job_id)
    asked = []

    def make():
        with ledger.transaction() as tx:
            asked.append(bases.get(tx, ledger.base.name, held=True))

    with ledger.transaction() as tx:
        bases.remove(tx, ledger.base.name)
        tx.flush()
        maker, raised = in_thread(make)
        until_someone_waits(ledger)
    maker.join(20)
    assert (asked, [type(e) for e in raised]) == ([], [UnknownBaseError])
    with ledger.transaction() as tx:
        assert adapters.of_job(tx, job_id).base == ledger.base.name  # adapters stay
