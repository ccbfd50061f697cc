"""Checkpoints through the real store: whole, verified, the newest that is good."""

import pytest
from sqlalchemy import select

from manylora import keys
from manylora.errors import LostError
from manylora.ledger import checkpoints, jobs
from manylora.ledger.tables import Event
from tests.manylora.ledger.conftest import make_ledger
from worker import checkpoint


@pytest.fixture
def ledger(service):
    return make_ledger(service.database)


@pytest.fixture
def saved(service, ledger, tmp_path):
    """(job, rows newest first) of a running job with checkpoints at 5 and 10."""
    job = ledger.get(ledger.running())
    for step in (5, 10):
        folder = tmp_path / f"ckpt-{step}"
        folder.mkdir()
        (folder / "state.safetensors").write_bytes(bytes([step]) * 100)
        (folder / "state.json").write_text(f'{{"step": {step}}}')
        checkpoint.save(service.database, service.store, job, step, folder)
    return job, rows(ledger, job)


def restore(service, job, listed, folder):
    return checkpoint.restore(service.database, service.store, job, listed, folder)


def ledger_events(service, job):
    with service.database.transaction() as tx:
        return list(tx.scalars(select(Event).where(Event.job_id == job.id)))


def rows(ledger, job):
    with ledger.transaction() as tx:
        return checkpoints.of_job(tx, job.id)


def test_the_newest_comes_back_as_it_went(service, saved, tmp_path):
    job, listed = saved
    assert [c.step for c in listed] == [10, 5]
    found = restore(service, job, listed, tmp_path / "new")
    assert (found.step, found.exact) == (10, True)
    for name in ("state.safetensors", "state.json"):
        assert (found.folder / name).read_bytes() == (tmp_path / "ckpt-10" / name).read_bytes()


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_one_is_passed_over_for_the_one_before(service, saved, tmp_path, file, damage):
    job, listed = saved
    key = f"{listed[0].prefix}/{file}"
    if damage == "missing":
        service.store.delete(key)
    else:
        service.store.put_bytes(key, b"{}")
    found = restore(service, job, listed, tmp_path / "new")
    assert found.step == 5
    (warning,) = [e for e in ledger_events(service, job) if e.level == "warn"]
    assert warning.message.startswith("The checkpoint of step 10 is damaged and passed over: ")
    assert (found.folder / "state.safetensors").read_bytes() == bytes([5]) * 100


def test_when_none_is_good_the_job_begins_anew(service, saved, tmp_path):
    job, listed = saved
    for row in listed:
        service.store.delete(f"{row.prefix}/manifest.json")
    assert restore(service, job, listed, tmp_path / "new") is None
    assert restore(service, job, [], tmp_path / "new") is None


def test_a_manifest_cannot_reach_out_of_its_folder(service, saved, tmp_path):
    job, listed = saved
    body = b'{"files": [{"name": "../../out", "sha256": "00"}]}'
    listed[0].manifest_sha256 = service.store.put_bytes(f"{listed[0].prefix}/manifest.json", body)
    with pytest.raises(ValueError, match="plain file name"):
        restore(service, job, listed, tmp_path / "new")
    assert not (tmp_path / "out").exists()


def test_who_lost_the_job_records_none(service, ledger, saved, tmp_path):
    job, _ = saved
    with ledger.transaction() as tx:
        jobs.cancel(tx, ledger.tenant.id, job.id)
    with pytest.raises(LostError):
        checkpoint.save(service.database, service.store, job, 15, tmp_path / "ckpt-10")
    assert [c.step for c in rows(ledger, job)] == [10, 5]


def test_attempts_write_below_prefixes_of_their_own(saved):
    job, listed = saved
    for row in listed:
        assert row.prefix == keys.checkpoint_prefix(str(job.tenant_id), job.id, 1, row.step)
        assert "/a/000001/" in row.prefix
