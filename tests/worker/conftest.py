"""A trainer child on the tiny base, once a file, and supervisors that work with it."""

import threading
import time
import uuid

import pytest

from manylora.ledger import checkpoints, jobs, leases
from manylora.ledger.tables import Attempt, Job
from tests.e2e.test_jobs import lines, submit
from worker.supervise import Supervisor
from worker.trainer.link import TrainerLink


def until(condition, seconds=120):
    """What `condition` answers as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def link(tiny_base):
    link = TrainerLink(tiny_base[1], slots=1, device="cpu", threads=2, note=None)
    link.start()
    assert link.ready.wait(120)
    yield link
    link.stop()


class Bench:
    """Jobs of one tenant, dispatched by hand and worked by supervisors of this process."""

    def __init__(self, service, base, folder, link):
        self.service = service
        self.base = base
        self.folder = folder
        self.link = link
        self.database = service.database
        self.tenant, _ = service.tenant(f"t-{uuid.uuid4().hex[:8]}")
        self.threads = []

    def job(self, seed=1, count=10, **asked):
        """A job that waits; its lines are `lines(seed, count)`."""
        file = self.service.upload(self.tenant, lines(seed, count))
        job = submit(self.service, self.tenant, self.base, file, **asked)
        with self.database.transaction() as tx:
            jobs.move(tx, job.id, "accept", actor="test", message="taken in")
        return job.id

    def dispatch(self, job_id):
        with self.database.transaction() as tx:
            return leases.dispatch(tx, job_id, queue="q", deadline_seconds=60)

    def supervisor(self, name="w1", **settings):
        given = {"scratch": self.service.settings.home / f"scratch-{name}", **settings}
        changed = self.service.settings.model_copy(update=given)
        return Supervisor(changed, self.database, self.service.store, self.link, self.folder, name)

    def begin(self, supervisor, job_id, attempt):
        """(thread, outcomes) of a supervisor at work beside this thread."""
        outcomes = []
        thread = threading.Thread(
            target=lambda: outcomes.append(supervisor.run(job_id, attempt)), daemon=True
        )
        thread.start()
        self.threads.append(thread)
        return thread, outcomes

    def get(self, job_id):
        with self.database.transaction() as tx:
            return tx.get(Job, job_id)

    def attempt(self, job_id, number=1):
        with self.database.transaction() as tx:
            return tx.get(Attempt, (job_id, number))

    def checkpoints(self, job_id):
        with self.database.transaction() as tx:
            return checkpoints.of_job(tx, job_id)


@pytest.fixture
def bench(service, registered, tiny_base, link):
    bench = Bench(service, registered, tiny_base[1], link)
    yield bench
    for thread in bench.threads:
        thread.join(60)
        assert not thread.is_alive()
