"""Told to stop, a worker finishes its step, checkpoints, hands back and ends; told twice, at once.
A rolling restart loses nothing."""

import os
import signal
import time

import pytest

from manylora.ledger import adapters, jobs
from manylora.ledger.tables import Worker
from tests.chaos.checks import assert_published_once
from tests.chaos.stack import Stack, until

LONG = dict(n_epochs=30)


@pytest.fixture(scope="module")
def stack(tmp_path_factory, tiny_base):
    # A lease that no test waits for: what goes on after a restart was handed back.
    one = Stack(tmp_path_factory.mktemp("restarts"), tiny_base, workers=2, lease_seconds=120.0)
    try:
        yield one.start()
    finally:
        one.stop()


@pytest.fixture(scope="module")
def undisturbed(stack):
    file = stack.upload(1, 120)
    job_id = stack.submit(file, **LONG)
    stack.wait([job_id])
    with stack.service.database.transaction() as tx:
        return file, adapters.of_job(tx, job_id).weights_sha256


def running(stack, ids):
    return all(stack.job(i).state == "running" and stack.job(i).step > 0 for i in ids)


def state(stack, worker_id):
    with stack.service.database.transaction() as tx:
        return tx.get(Worker, worker_id).state


def stop(stack, name, *numbers):
    """The process of a part once it has ended of those signals, and how long that took."""
    process, began = stack.child(name).process, time.monotonic()
    for number in numbers:
        os.kill(process.pid, number)
    until(lambda: process.returncode is not None, f"{name} to end", 60)
    return process, time.monotonic() - began


def test_every_part_is_restarted_in_turn_and_every_job_goes_on(stack, undisturbed):
    file, digest = undisturbed
    ids = [stack.submit(file, **LONG) for _ in range(4)]
    until(lambda: running(stack, ids), "all to run")
    for name in ("worker-0", "scheduler", "worker-1", "api"):
        process, seconds = stop(stack, name, signal.SIGTERM)
        # uvicorn answers what it was asked, and then ends of the signal itself.
        code = -signal.SIGTERM if name == "api" else 0
        assert (process.returncode, seconds < 30) == (code, True), (name, seconds)
        until(stack.workers_ready, "workers")
    for job in stack.wait(ids, 200):
        assert (job.state, job.failures) == ("succeeded", 0)
        assert_published_once(stack, job.id, digest)
    assert any(stack.job(i).attempt > 1 for i in ids)


def test_told_twice_it_ends_at_once_and_its_job_goes_on_when_the_lease_is_over(stack, undisturbed):
    file, _ = undisturbed
    until(stack.workers_ready, "workers")
    job_id = stack.submit(file, n_epochs=50)
    until(lambda: running(stack, [job_id]), "it to run")
    with stack.service.database.transaction() as tx:
        (attempt,) = [a for a in jobs.attempts(tx, job_id) if a.ended_at is None]
    pids = {stack.pid(name): name for name in ("worker-0", "worker-1")}
    with stack.service.database.transaction() as tx:
        facts = tx.get(Worker, attempt.worker_id).facts
    name = pids[facts["pid"]]
    # A trainer that does not answer: the worker waits for its last step, until it is told again.
    os.kill(facts["trainer_pid"], signal.SIGSTOP)
    os.kill(facts["pid"], signal.SIGTERM)
    until(lambda: state(stack, attempt.worker_id) == "draining", "the worker to drain")
    process, seconds = stop(stack, name, signal.SIGTERM)
    assert seconds < 10
    assert process.returncode == 128 + signal.SIGTERM
    job = stack.job(job_id)
    assert (job.state, job.attempt) == ("running", 1)  # nobody handed it back: its lease ends
    with stack.service.database.transaction() as tx:
        jobs.cancel(tx, stack.tenant.id, job_id)
