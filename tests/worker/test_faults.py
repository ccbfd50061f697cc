"""The trainer dies, hangs, finds no memory and no disk under jobs: the culprit alone pays."""

import shutil

import pytest
from sqlalchemy import select

from manylora.ledger import adapters
from manylora.ledger.tables import Event
from tests.e2e.test_jobs import alone, lines
from tests.worker.conftest import Bench
from tests.worker.trainer.faulty import CRASH, DISK, HANG, LAST, NAN
from worker.trainer import link as link_module
from worker.trainer.link import TrainerLink

LONG = dict(count=80, n_epochs=4)


@pytest.fixture(scope="module")
def faulty(tiny_base):
    link = TrainerLink(tiny_base[1], slots=3, device="cpu", threads=1, note=None)
    link._argv[-1] = "tests.worker.trainer.faulty"
    link.start()
    assert link.ready.wait(120)
    yield link
    link.stop()


@pytest.fixture
def bench(service, registered, tiny_base, faulty):
    bench = Bench(service, registered, tiny_base[1], faulty)
    yield bench
    for thread in bench.threads:
        thread.join(60)
        assert not thread.is_alive()


def told(bench, job_id):
    with bench.database.transaction() as tx:
        rows = tx.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.seq))
        return [e.message for e in rows]


def side_by_side(bench, marks, **settings):
    """Jobs of those marks (None: of none), worked together to their ends: [(id, outcome)]."""
    ids = [
        bench.job(seed=n, **LONG, **({"warmup_ratio": mark} if mark else {}))
        for n, mark in enumerate(marks, 20)
    ]
    supervisor = bench.supervisor(checkpoint_seconds=0.1, **settings)
    begun = [bench.begin(supervisor, i, bench.dispatch(i)) for i in ids]
    for thread, _ in begun:
        thread.join(200)
        assert not thread.is_alive()
    return [(i, outcomes[0]) for i, (_, outcomes) in zip(ids, begun, strict=True)]


def assert_untouched(bench, job_id, seed, tiny_base, tmp_path):
    job = bench.get(job_id)
    assert (job.state, job.attempt, job.failures) == ("succeeded", 1, 0)
    with bench.database.transaction() as tx:
        digest = adapters.of_job(tx, job_id).weights_sha256
    assert digest == alone(job, lines(seed, LONG["count"]), tiny_base[1], tmp_path, threads=1)


@pytest.mark.parametrize(("mark", "how"), [(CRASH, "SIGKILL"), (HANG, "SIGKILL")])
def test_the_culprit_is_found_and_fails_alone(bench, tiny_base, tmp_path, mark, how):
    before = bench.link.restarts
    (first, a), (culprit, b), (last, c) = side_by_side(bench, [None, mark, None], stall_seconds=2.0)
    assert (a, b, c) == ("succeeded", "failed", "succeeded")
    assert bench.link.restarts == before + 3
    job = bench.get(culprit)
    assert (job.state, job.error_code, job.failures_lost) == ("failed", "poison", 1)
    assert "3 times running" in job.error_message
    assert how in job.error_message
    for job_id, seed in ((first, 20), (last, 22)):
        assert_untouched(bench, job_id, seed, tiny_base, tmp_path)
        assert any("goes on from its last checkpoint" in m for m in told(bench, job_id))


def test_who_ran_out_of_memory_is_tried_once_more_alone_and_fails_with_the_sizes(
    bench, tiny_base, tmp_path, monkeypatch
):
    kills = iter(range(1000))  # the kernel counts one more each time it is asked
    monkeypatch.setattr(link_module, "oom_kills", lambda: next(kills))
    before = bench.link.restarts
    # The child at work was started before: it has no count of its own yet.
    bench.link._oom_kills = next(kills)
    (culprit, outcome), (other, spared) = side_by_side(bench, [CRASH, None])
    assert (outcome, spared) == ("failed", "succeeded")
    assert bench.link.restarts == before + 2
    job = bench.get(culprit)
    assert (job.error_code, job.failures_oom) == ("out_of_memory", 1)
    for size in ("lora_r 4", "batch_size 4", "context_length", "token_budget 2048"):
        assert size in job.error_message
    assert_untouched(bench, other, 21, tiny_base, tmp_path)


def test_a_disk_that_takes_no_checkpoint_costs_only_the_checkpoint(bench, tiny_base, tmp_path):
    ((job_id, outcome),) = side_by_side(bench, [DISK])
    assert outcome == "succeeded"
    assert bench.checkpoints(job_id) == []
    assert any("No space left on device; it trains on" in m for m in told(bench, job_id))


def test_a_disk_that_takes_no_adapter_sends_the_job_back(bench):
    ((job_id, outcome),) = side_by_side(bench, [LAST])
    job = bench.get(job_id)
    assert outcome == "released", job.error_message
    assert (job.state, job.failures_infra) == ("queued", 1)
    assert job.not_before is not None


def test_a_disk_without_room_sends_the_job_back_before_it_begins(bench, monkeypatch):
    full = shutil._ntuple_diskusage(1 << 40, (1 << 40) - (1 << 20), 1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    job_id = bench.job(seed=30)
    assert bench.supervisor().run(job_id, bench.dispatch(job_id)) == "released"
    job = bench.get(job_id)
    assert (job.state, job.failures_infra) == ("queued", 1)
    assert any("disk has 1 MiB free, and the job needs 256 MiB" in m for m in told(bench, job_id))


def test_numbers_that_are_none_fail_at_once_and_alone(bench, tiny_base, tmp_path):
    (job_id, outcome), (other, spared) = side_by_side(bench, [NAN, None])
    assert (outcome, spared) == ("failed", "succeeded")
    job = bench.get(job_id)
    assert (job.state, job.attempt, job.failures_user) == ("failed", 1, 1)
    assert "step 6" in job.error_message
    assert_untouched(bench, other, 21, tiny_base, tmp_path)
