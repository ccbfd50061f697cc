"""The sweep: what rows name stays, what nobody names goes, once the grace is over."""

import pytest
from sqlalchemy import text

from manylora import keys
from manylora.ledger import checkpoints, jobs
from scheduler.prune import prune
from tests.manylora.ledger.conftest import make_ledger


@pytest.fixture
def ledger(service):
    return make_ledger(service.database)


def sweep(service, grace):
    """One round over all jobs there are, other tests' too."""
    prune(service.database, service.store, grace, limit=1_000_000)


def objects(service, ledger, job_id):
    prefix = keys.job_prefix(str(ledger.tenant.id), job_id)
    return {k.removeprefix(prefix + "/") for k in service.store.list(prefix + "/")}


@pytest.fixture
def ended(service, ledger):
    """A job that succeeded at its second attempt, and all that lies about in the bucket."""
    job_id = ledger.running()
    tenant = str(ledger.tenant.id)
    adapter = keys.adapter_prefix(tenant, job_id, 1)
    with ledger.transaction() as tx:
        job = ledger.get(job_id)
        state = keys.checkpoint_prefix(tenant, job_id, 1, 5)
        checkpoints.add(tx, job, step=5, prefix=state, manifest_sha256="0" * 64, metrics={})
        epoch = keys.epoch_prefix(tenant, job_id, 1, 3)
        checkpoints.add(
            tx, job, step=3, prefix=epoch, manifest_sha256="0" * 64, metrics={}, kind="epoch"
        )
    for key in (
        f"{adapter}/adapter_model.safetensors", keys.manifest_key(tenant, job_id, 1),
        f"{state}/state.json", f"{epoch}/manifest.json",
        f"{keys.epoch_prefix(tenant, job_id, 1, 6)}/adapter_config.json",
        f"{keys.adapter_prefix(tenant, job_id, 2)}/adapter_config.json",
        keys.manifest_key(tenant, job_id, 2),
    ):  # fmt: skip
        service.store.put_bytes(key, b"x")
    return job_id, adapter


def finish(ledger, job_id, adapter):
    from manylora.ledger import leases

    row = ledger.adapter(job_id)
    row.prefix = adapter
    row.manifest_key = keys.manifest_key(str(ledger.tenant.id), job_id, 1)
    with ledger.transaction() as tx:
        leases.publish(tx, job_id, 1, worker_id="w1", tokens=9, adapter=row)


KEPT = {
    "a/000001/adapter/adapter_model.safetensors",
    "a/000001/manifest.json",
    "a/000001/epoch/00000003/manifest.json",
}


def test_only_what_rows_name_is_left_of_a_job_that_ended(service, ledger, ended):
    job_id, adapter = ended
    everything = objects(service, ledger, job_id)
    sweep(service, 0.0)
    assert objects(service, ledger, job_id) == everything  # it is running
    finish(ledger, job_id, adapter)
    sweep(service, 3600.0)
    assert objects(service, ledger, job_id) == everything  # the grace is not over
    sweep(service, 0.0)
    assert objects(service, ledger, job_id) == KEPT
    with ledger.transaction() as tx:
        assert checkpoints.of_job(tx, job_id, "state") == []
        assert len(checkpoints.of_job(tx, job_id, "epoch")) == 1
    # A worker thought dead writes after the sweep: it is swept a second time, and no third.
    late = keys.manifest_key(str(ledger.tenant.id), job_id, 3)
    service.store.put_bytes(late, b"late")
    sweep(service, 0.0)
    assert objects(service, ledger, job_id) == KEPT
    assert ledger.get(job_id).sweeps == 2
    service.store.put_bytes(late, b"late")
    sweep(service, 0.0)
    assert objects(service, ledger, job_id) == {*KEPT, "a/000003/manifest.json"}


def test_of_a_cancelled_job_the_epochs_stay(service, ledger, ended):
    job_id, _ = ended
    with ledger.transaction() as tx:
        jobs.cancel(tx, ledger.tenant.id, job_id)
    for _ in range(2):
        sweep(service, 0.0)
    assert objects(service, ledger, job_id) == {"a/000001/epoch/00000003/manifest.json"}


def test_the_second_sweep_comes_a_grace_after_the_first(service, ledger, ended):
    job_id, adapter = ended
    finish(ledger, job_id, adapter)
    with ledger.transaction() as tx:
        tx.execute(
            text("UPDATE jobs SET finished_at = finished_at - interval '90 s' WHERE id = :id"),
            {"id": job_id},
        )
    for _ in range(2):
        sweep(service, 60.0)
        assert ledger.get(job_id).sweeps == 1


def test_uploads_nobody_completed_are_aborted_when_they_are_old(service, ledger):
    store = service.store
    key = f"{keys.adapter_prefix(str(ledger.tenant.id), 'ftjob-x', 1)}/part"
    store._client.create_multipart_upload(Bucket=store.bucket, Key=key)
    sweep(service, 3600.0)
    ((found, _, age),) = [one for one in store.unfinished(keys.JOBS) if one[0] == key]
    assert found == key
    assert 0 <= age < 60
    sweep(service, 0.0)
    assert store.unfinished(keys.JOBS) == []
    store.abort(key, "gone")  # nothing to abort is no error
