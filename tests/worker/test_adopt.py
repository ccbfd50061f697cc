"""What an earlier attempt left whole is published by the next one; what is not whole, is not."""

import json

import pytest
from sqlalchemy import select

from manylora import keys
from manylora.errors import UnavailableError
from manylora.ledger import adapters, jobs, leases
from manylora.ledger.tables import Event
from scheduler.prune import prune
from tests.e2e.test_jobs import alone, lines
from worker import adopt, publish


@pytest.fixture
def orphan(bench, monkeypatch):
    """(job id, its manifest's key): attempt 1 uploaded everything and could not commit."""

    def away(*_, **__):
        raise UnavailableError("the database is away")

    job_id = bench.job(seed=40)
    attempt = bench.dispatch(job_id)
    with monkeypatch.context() as patch:
        patch.setattr(publish, "commit", away)
        patch.setattr(leases, "release", away)
        assert bench.supervisor("w1", patience_seconds=0).run(job_id, attempt) == "lost"
    with bench.database.transaction() as tx:
        leases.release(tx, job_id, attempt, actor="scheduler", reason="silence", counts=True)
    return job_id, keys.manifest_key(str(bench.tenant.id), job_id, 1)


def adapter_of(bench, job_id):
    with bench.database.transaction() as tx:
        return adapters.of_job(tx, job_id)


def told(bench, job_id):
    with bench.database.transaction() as tx:
        return list(tx.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.seq)))


def test_a_whole_orphan_is_published_and_not_trained_again(bench, orphan, monkeypatch):
    job_id, manifest = orphan
    joined = []
    monkeypatch.setattr(bench.link, "send", joined.append)
    assert bench.supervisor("w2").run(job_id, bench.dispatch(job_id)) == "succeeded"
    assert joined == []  # nothing went to the trainer
    adapter, job = adapter_of(bench, job_id), bench.get(job_id)
    assert (adapter.attempt, adapter.source_attempt, adapter.manifest_key) == (2, 1, manifest)
    assert (job.state, job.step, job.total_steps) == ("succeeded", 6, 6)
    described = json.loads(bench.service.store.get_bytes(manifest))
    assert job.trained_tokens == described["trained_tokens"] > 0
    assert adapter.name == described["adapter"]
    (said,) = [e for e in told(bench, job_id) if e.data == {"source_attempt": 1}]
    assert said.message == (
        "The adapter of attempt 1 is whole and verified: it is published as it is"
    )


@pytest.mark.parametrize("damage", ["weights changed", "config missing", "other wish", "no JSON"])
def test_one_that_is_not_whole_or_not_ours_is_trained_again(
    bench, orphan, damage, tiny_base, tmp_path
):
    job_id, manifest = orphan
    store = bench.service.store
    prefix = keys.adapter_prefix(str(bench.tenant.id), job_id, 1)
    if damage == "weights changed":
        store.put_bytes(f"{prefix}/{publish.WEIGHTS}", b"other")
    elif damage == "config missing":
        store.delete(f"{prefix}/adapter_config.json")
    elif damage == "other wish":
        described = json.loads(store.get_bytes(manifest))
        described["hyperparameters"]["lora_r"] = 64
        store.put_bytes(manifest, json.dumps(described).encode())
    else:
        store.put_bytes(manifest, b"{")
    assert bench.supervisor("w2").run(job_id, bench.dispatch(job_id)) == "succeeded"
    adapter = adapter_of(bench, job_id)
    assert (adapter.attempt, adapter.source_attempt) == (2, 2)
    digest = alone(bench.get(job_id), lines(40), tiny_base[1], tmp_path)
    assert adapter.weights_sha256 == digest


def test_a_first_attempt_asks_nobody(bench):
    job_id = bench.job(seed=41)
    bench.dispatch(job_id)
    assert adopt.find(None, bench.get(job_id), [], None) is None


def test_an_outage_of_the_store_is_sat_out_at_the_end(bench, monkeypatch):
    real, refused = bench.service.store.put_file, []

    def flaky(key, path, **how):
        if "/adapter/" in key and len(refused) < 2:
            refused.append(key)
            raise UnavailableError("the store is away")
        return real(key, path, **how)

    monkeypatch.setattr(bench.service.store, "put_file", flaky)
    job_id = bench.job(seed=42)
    assert bench.supervisor().run(job_id, bench.dispatch(job_id)) == "succeeded"
    assert len(refused) == 2
    assert (bench.get(job_id).attempt, bench.get(job_id).failures) == (1, 0)


def test_a_job_cancelled_while_it_publishes_stays_cancelled(bench, monkeypatch):
    real = publish.upload

    def upload(store, job, folder, described):
        published = real(store, job, folder, described)
        with bench.database.transaction() as tx:
            jobs.cancel(tx, bench.tenant.id, job.id)
        return published

    monkeypatch.setattr(publish, "upload", upload)
    job_id = bench.job(seed=44)
    assert bench.supervisor().run(job_id, bench.dispatch(job_id)) == "lost"
    assert bench.get(job_id).state == "cancelled"
    assert adapter_of(bench, job_id) is None
    prefix = keys.job_prefix(str(bench.tenant.id), job_id) + "/"
    assert bench.service.store.list(prefix)  # what it had put there is the sweep's
    prune(bench.database, bench.service.store, 0.0, limit=1_000_000)
    left = bench.service.store.list(prefix)
    assert all("/epoch/" in key for key in left)  # what checkpoints through the API may name


def test_an_answer_to_the_commit_that_is_lost_makes_no_second_one(bench, monkeypatch):
    real, said = publish.commit, []

    def commit(*arguments):
        real(*arguments)
        if not said:
            said.append(1)
            raise UnavailableError("the answer did not come")

    monkeypatch.setattr(publish, "commit", commit)
    job_id = bench.job(seed=43)
    assert bench.supervisor().run(job_id, bench.dispatch(job_id)) == "succeeded"
    assert [e.to_state for e in told(bench, job_id)].count("succeeded") == 1
