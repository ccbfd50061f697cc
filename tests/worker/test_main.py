"""A worker's process before it serves: its device, its row, and the base it waits for."""

import pytest

from manylora.errors import UsageError
from manylora.ledger import bases, workers
from manylora.ledger.tables import Worker
from tests.manylora.ledger.conftest import HEX, make_ledger
from worker.main import WorkerProcess, pick_device


class Impatient:
    """A clock that has the worker stop when it would wait."""

    def __init__(self, process):
        self.process = process

    def monotonic(self):
        return 0.0

    def wait(self, event, seconds):
        self.process.stopping.set()
        return event.is_set()


@pytest.fixture
def ledger(service):
    return make_ledger(service.database)


@pytest.fixture
def start(service):
    """start(base) -> a worker's process that was not run yet."""
    started = []

    def make(base=None):
        process = WorkerProcess(service.settings, base, 2, "cpu")
        process.clock = Impatient(process)
        started.append(process)
        return process

    yield make
    for process in started:
        process.state = "gone"
        process._report()
        process.database.close()


def row(ledger, process):
    with ledger.transaction() as tx:
        return tx.get(Worker, process.id)


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:x", "", "tpu:0", "cpu:0"])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(UsageError):
        pick_device(device)


def test_devices():
    assert pick_device("cpu") == "cpu"
    assert pick_device("cuda:1") == "cuda:1"
    assert pick_device("auto") in {"cpu", "cuda:0"}


def test_an_unpinned_worker_reports_and_waits_for_a_base(ledger, start):
    process = start()
    assert process._wait_for_base() is None
    found = row(ledger, process)
    assert (found.state, found.slots, found.pinned, found.assigned_base) == (
        "idle", 2, False, None,
    )  # fmt: skip
    with ledger.transaction() as tx:
        workers.assign(tx, process.id, ledger.base.name)
    process.stopping.clear()
    assert process._wait_for_base().name == ledger.base.name


def test_a_pinned_worker_says_that_its_base_is_not_there_and_takes_it_once_it_is(ledger, start):
    pinned, late = start(ledger.base.name), start("late-" + ledger.base.name)
    assert pinned._wait_for_base().name == ledger.base.name
    assert row(ledger, pinned).assigned_base == ledger.base.name
    assert late._wait_for_base() is None
    late._report()
    assert row(ledger, late).assigned_base is None
    assert f'no base is called "{late.base}"' in row(ledger, late).note
    with ledger.transaction() as tx:
        card = {c: getattr(ledger.base, c) for c in CARD}
        bases.start(tx, **card | {"name": late.base})
        bases.finish(tx, late.base)
    late.stopping.clear()
    assert late._wait_for_base().name == late.base


CARD = (
    "fingerprint", "dtype", "architecture", "source", "parameters", "hidden_size", "bytes",
    "chat_template", "files", "layers",
)  # fmt: skip


def test_a_pinned_worker_outlives_its_base(ledger, start):
    process = start(ledger.base.name)
    process.serving = process._wait_for_base()
    with ledger.transaction() as tx:
        bases.remove(tx, ledger.base.name)
    found = process._report()
    assert found.assigned_base is None
    assert not process._is_given_another(found)


def test_another_base_is_one_with_other_files(ledger, start):
    process = start()
    process.serving = ledger.base
    same, other = f"same-{ledger.base.name}", f"other-{ledger.base.name}"
    card = {c: getattr(ledger.base, c) for c in CARD}
    with ledger.transaction() as tx:
        bases.start(tx, **card | {"name": same})
        bases.start(tx, **card | {"name": other, "fingerprint": "cd" * 32})
        bases.finish(tx, same)
    process._report()

    def given(name):
        with ledger.transaction() as tx:
            workers.assign(tx, process.id, name)
        return process._is_given_another(process._report())

    assert ledger.base.fingerprint == HEX
    assert not given(ledger.base.name)
    assert not given(same)
    assert not given(other)  # its files are still on their way
    with ledger.transaction() as tx:
        bases.finish(tx, other)
    assert given(other)
