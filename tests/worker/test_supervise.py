"""One job under one supervisor, with a real trainer child: every way it can end."""

import os
import signal

import pytest
from sqlalchemy import select

from manylora.errors import LostError, UnavailableError
from manylora.ledger import adapters, jobs, leases
from manylora.ledger.tables import Event, Metric
from tests.e2e.test_jobs import alone, lines
from tests.worker.conftest import until
from worker import checkpoint

#: long enough to be caught at work: progress is on the books about once a second
LONG = dict(count=80, n_epochs=15)
STEPS = 300


def adapter_of(bench, job_id):
    with bench.database.transaction() as tx:
        return adapters.of_job(tx, job_id)


def told(bench, job_id):
    with bench.database.transaction() as tx:
        rows = tx.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.seq))
        return [e.message for e in rows]


def assert_as_undisturbed(bench, job_id, tiny_base, tmp_path, seed):
    job = bench.get(job_id)
    assert (job.state, job.step, job.total_steps) == ("succeeded", STEPS, STEPS)
    digest = alone(job, lines(seed, LONG["count"]), tiny_base[1], tmp_path)
    assert adapter_of(bench, job_id).weights_sha256 == digest
    with bench.database.transaction() as tx:
        points = list(tx.scalars(select(Metric).where(Metric.job_id == job_id)))
    assert sorted(p.step for p in points) == list(range(1, STEPS + 1))
    assert job.trained_tokens == sum(p.data["tokens"] for p in points)


def test_a_job_from_its_claim_to_its_adapter(bench, tiny_base, tmp_path):
    job_id = bench.job(seed=1)
    supervisor = bench.supervisor()
    assert supervisor.run(job_id, bench.dispatch(job_id)) == "succeeded"
    job = bench.get(job_id)
    assert adapter_of(bench, job_id).weights_sha256 == alone(job, lines(1), tiny_base[1], tmp_path)
    messages = told(bench, job_id)
    assert "Step 6/6: training loss=" in " ".join(messages)
    assert messages[-1] == "The job has successfully completed"
    assert not any(supervisor.settings.folder("scratch").iterdir())
    assert supervisor.run(job_id, 1) == "lost"  # the wake-up comes twice


def test_a_trainer_that_is_killed_costs_a_restart_and_no_bytes(
    bench, tiny_base, tmp_path, monkeypatch
):
    joined = []
    send = bench.link.send

    def spy(message):
        if message["op"] == "join":
            joined.append(message["resume"])
        send(message)

    monkeypatch.setattr(bench.link, "send", spy)
    job_id = bench.job(seed=2, **LONG)
    before = bench.link.restarts
    thread, outcomes = bench.begin(
        bench.supervisor(checkpoint_seconds=0.2), job_id, bench.dispatch(job_id)
    )
    until(lambda: [c for c in bench.checkpoints(job_id) if c.step >= 3])
    os.kill(bench.link.pid, signal.SIGKILL)
    thread.join(120)
    assert outcomes == ["succeeded"]
    assert bench.link.restarts == before + 1
    assert joined[0] is None
    assert "ckpt-" in joined[1]
    assert len(joined) == 2
    assert bench.attempt(job_id).outcome == "succeeded"
    assert_as_undisturbed(bench, job_id, tiny_base, tmp_path, 2)


def test_a_drained_job_goes_on_elsewhere_with_the_same_bytes(bench, tiny_base, tmp_path):
    job_id = bench.job(seed=3, **LONG)
    first = bench.supervisor("w1")
    thread, outcomes = bench.begin(first, job_id, bench.dispatch(job_id))
    until(lambda: bench.get(job_id).step >= 1)
    first.draining.set()
    thread.join(60)
    assert outcomes == ["released"]
    job = bench.get(job_id)
    assert (job.state, job.failures) == ("queued", 0)
    saved = bench.checkpoints(job_id)
    assert 1 <= saved[0].step < STEPS
    assert len(saved) <= 2
    # Another machine: it has nothing but what the store holds.
    second = bench.supervisor("w2")
    assert second.run(job_id, bench.dispatch(job_id)) == "succeeded"
    assert adapter_of(bench, job_id).attempt == 2
    assert_as_undisturbed(bench, job_id, tiny_base, tmp_path, 3)


def test_a_paused_job_gives_its_slot_back_and_goes_on_with_the_same_bytes(
    bench, tiny_base, tmp_path
):
    job_id = bench.job(seed=11, **LONG)
    thread, outcomes = bench.begin(bench.supervisor(), job_id, bench.dispatch(job_id))
    until(lambda: bench.get(job_id).step >= 1)
    with bench.database.transaction() as tx:
        assert jobs.pause(tx, bench.tenant.id, job_id).wish == "pause"
    thread.join(60)
    assert outcomes == ["released"]
    job = bench.get(job_id)
    assert (job.state, job.failures, job.wish) == ("paused", 0, None)
    assert bench.attempt(job_id).outcome == "released"
    saved = max(checkpoint.step for checkpoint in bench.checkpoints(job_id))
    assert max(1, job.step) <= saved < STEPS
    with bench.database.transaction() as tx:
        assert jobs.resume(tx, bench.tenant.id, job_id).state == "queued"
    assert bench.supervisor().run(job_id, bench.dispatch(job_id)) == "succeeded"
    assert_as_undisturbed(bench, job_id, tiny_base, tmp_path, 11)


def test_a_preempted_job_makes_room_and_is_queued_again(bench):
    job_id = bench.job(seed=12, count=200, n_epochs=50)
    thread, outcomes = bench.begin(bench.supervisor(), job_id, bench.dispatch(job_id))
    until(lambda: bench.get(job_id).step >= 1)
    with bench.database.transaction() as tx:
        leases.preempt(tx, job_id, 1)
    thread.join(60)
    assert outcomes == ["released"]
    job = bench.get(job_id)
    assert (job.state, job.failures, job.preemptions, job.wish) == ("queued", 0, 1, None)
    assert bench.attempt(job_id).outcome == "preempted"
    assert max(checkpoint.step for checkpoint in bench.checkpoints(job_id)) >= max(1, job.step)


def test_a_cancelled_job_leaves_its_slot_to_the_next(bench):
    job_id = bench.job(seed=4, count=200, n_epochs=50)
    thread, outcomes = bench.begin(bench.supervisor(), job_id, bench.dispatch(job_id))
    until(lambda: bench.get(job_id).step >= 1)
    with bench.database.transaction() as tx:
        jobs.cancel(tx, bench.tenant.id, job_id)
    thread.join(60)
    assert outcomes == ["lost"]
    assert bench.attempt(job_id).outcome == "left"
    assert adapter_of(bench, job_id) is None
    after = bench.job(seed=5)  # the trainer has one slot
    assert bench.supervisor().run(after, bench.dispatch(after)) == "succeeded"


def test_a_job_taken_away_while_it_trains_publishes_nothing(bench):
    """A true zombie: its lease is gone and another attempt is out, and it still trains."""
    job_id = bench.job(seed=6, count=200, n_epochs=50)
    thread, outcomes = bench.begin(bench.supervisor(), job_id, bench.dispatch(job_id))
    until(lambda: bench.get(job_id).step >= 1)
    with bench.database.transaction() as tx:
        leases.release(tx, job_id, 1, actor="scheduler", reason="silence", counts=True)
    assert bench.dispatch(job_id) == 2
    thread.join(60)
    assert outcomes == ["lost"]
    assert bench.get(job_id).state == "dispatched"
    assert adapter_of(bench, job_id) is None
    assert bench.attempt(job_id).outcome == "lost"
    assert bench.attempt(job_id, 2).ended_at is None


def test_an_adapter_that_cannot_be_built_fails_its_job_for_good(bench):
    job_id = bench.job(seed=7, target_modules=["nothing_like_it"])
    assert bench.supervisor().run(job_id, bench.dispatch(job_id)) == "failed"
    job = bench.get(job_id)
    assert (job.state, job.failures) == ("failed", 0)
    assert "nothing_like_it" in job.error_message


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (b'{"text": "forged"}\n', "file_changed", "is not what was uploaded"),
        (None, "file_gone", "is no longer in the store"),
    ],
)
def test_a_dataset_gone_or_changed_in_the_store_fails_its_job_in_a_sentence(
    bench, body, code, said
):
    job_id = bench.job(seed=8)
    (key,) = bench.service.store.list(f"t/{bench.tenant.id}/files/")
    if body is None:
        bench.service.store.delete(key)
    else:
        bench.service.store.put_bytes(key, body)
    assert bench.supervisor().run(job_id, bench.dispatch(job_id)) == "failed"
    job = bench.get(job_id)
    assert (job.state, job.failures, job.error_code) == ("failed", 0, code)
    assert f"(train.jsonl) {said}" in job.error_message.replace(" in the store is not", " is not")
    assert "upload it again" in job.error_message


def test_a_checkpoint_the_store_does_not_take_costs_only_itself(bench, monkeypatch):
    tried = []

    def down(*_, **__):
        tried.append(1)
        raise UnavailableError("the store is away")

    monkeypatch.setattr(checkpoint, "save", down)
    job_id = bench.job(seed=9, count=40)
    supervisor = bench.supervisor(checkpoint_seconds=0.001)
    assert supervisor.run(job_id, bench.dispatch(job_id)) == "succeeded"
    assert tried
    assert bench.checkpoints(job_id) == []


@pytest.mark.parametrize("verb", ["renew", "publish"])
def test_a_database_that_goes_away_at_the_end_leaves_the_attempt_to_the_rescue(
    bench, monkeypatch, verb
):
    def away(*_, **__):
        raise UnavailableError("the database is away")

    job_id = bench.job(seed=10)
    attempt = bench.dispatch(job_id)
    monkeypatch.setattr(leases, verb, away)
    monkeypatch.setattr(leases, "release", away)
    assert bench.supervisor(patience_seconds=0).run(job_id, attempt) == "lost"
    assert bench.get(job_id).state == "running"
    assert bench.attempt(job_id).ended_at is None
    monkeypatch.undo()
    with bench.database.transaction() as tx:
        leases.release(tx, job_id, attempt, actor="scheduler", reason="silence", counts=True)


def test_a_stale_or_forged_wakeup_touches_nothing(bench):
    job_id = bench.job(seed=11)
    supervisor = bench.supervisor()
    assert supervisor.run(job_id, 1) == "lost"
    assert supervisor.run("ftjob-none", 1) == "lost"
    assert bench.dispatch(job_id) == 1
    assert supervisor.run(job_id, 2) == "lost"
    assert bench.get(job_id).state == "dispatched"


def test_the_lease_is_lost_in_the_middle_of_a_checkpoint(bench, monkeypatch):
    def lost(*_, **__):
        raise LostError("somebody else has it")

    monkeypatch.setattr(checkpoint, "save", lost)
    job_id = bench.job(seed=12, count=40)
    supervisor = bench.supervisor(checkpoint_seconds=0.001)
    assert supervisor.run(job_id, bench.dispatch(job_id)) == "lost"
    assert bench.attempt(job_id).outcome == "left"
    assert adapter_of(bench, job_id) is None
