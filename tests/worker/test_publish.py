"""A manifest says everything the weights do not; it is written last, and once."""

import json

import pytest

from manylora import keys
from manylora.errors import IntegrityError, LostError, UnavailableError
from manylora.ledger import adapters, jobs
from manylora.storage.store import sha256_of
from tests.manylora.ledger.conftest import HEX, make_ledger
from worker import publish


@pytest.fixture
def ledger(service):
    return make_ledger(service.database)


@pytest.fixture
def made(ledger, tmp_path):
    """(running job, its adapter's folder, its manifest)."""
    job = ledger.get(ledger.running(hyperparameters={"lora_r": 4}, total_steps=6))
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 4}')
    (folder / publish.WEIGHTS).write_bytes(b"weights" * 100)
    described = publish.manifest(job, "acme", "ft:b:acme::x", folder, [ledger.file], {"torch": "2"})
    return job, folder, described


def test_the_manifest_names_all_that_made_the_adapter(ledger, made):
    job, folder, described = made
    assert described["job"] == job.id
    assert described["attempt"] == 1
    assert described["base"] == {"name": ledger.base.name, "fingerprint": HEX}
    assert described["datasets"] == [
        {"file": ledger.file.id, "filename": "f.jsonl", "sha256": HEX, "bytes": 1}
    ]
    assert (described["hyperparameters"], described["seed"]) == ({"lora_r": 4}, 1)
    assert (described["steps"], described["numerics"]) == (6, {"torch": "2"})
    assert described["versions"]["manylora"]
    assert described["files"] == [
        {"name": p.name, "sha256": sha256_of(p), "bytes": p.stat().st_size}
        for p in sorted(folder.iterdir())
    ]


def noted(call, keys_):
    """`call`, which also notes the key it was called with."""

    def and_call(key, *arguments, **options):
        keys_.append(key)
        return call(key, *arguments, **options)

    return and_call


def test_files_go_first_and_the_manifest_last(service, made, monkeypatch):
    job, folder, described = made
    put = []
    for verb in ("put_file", "put_bytes"):
        monkeypatch.setattr(service.store, verb, noted(getattr(service.store, verb), put))
    published = publish.upload(service.store, job, folder, described)
    assert [k.rsplit("/", 1)[1] for k in put] == [
        "adapter_config.json", publish.WEIGHTS, "manifest.json",
    ]  # fmt: skip
    assert published.manifest_key == keys.manifest_key(str(job.tenant_id), job.id, 1)
    stored = service.store.list(published.prefix + "/")
    assert {k.rsplit("/", 1)[1] for k in stored} == {"adapter_config.json", publish.WEIGHTS}
    assert json.loads(service.store.get_bytes(published.manifest_key)) == described
    assert published.bytes == sum(f["bytes"] for f in described["files"])
    assert published.weights_sha256 == sha256_of(folder / publish.WEIGHTS)
    # Its own retry is no second writer; another manifest under the same attempt is.
    assert publish.upload(service.store, job, folder, described) == published
    with pytest.raises(IntegrityError):
        publish.upload(service.store, job, folder, {**described, "seed": 2})


def test_an_upload_that_breaks_leaves_no_manifest(service, made, monkeypatch):
    job, folder, described = made
    real = service.store.put_file

    def broken(key, path, **how):
        if key.endswith(publish.WEIGHTS):
            raise UnavailableError("the store is away")
        real(key, path, **how)

    monkeypatch.setattr(service.store, "put_file", broken)
    with pytest.raises(UnavailableError):
        publish.upload(service.store, job, folder, described)
    assert service.store.size(keys.manifest_key(str(job.tenant_id), job.id, 1)) is None


def test_the_commit_makes_the_adapter_exist_and_only_for_who_holds_the_job(service, ledger, made):
    job, folder, described = made
    published = publish.upload(service.store, job, folder, described)
    with ledger.transaction() as tx:
        jobs.cancel(tx, ledger.tenant.id, job.id)
    with pytest.raises(LostError):
        publish.commit(service.database, job, published, "w1", 7)
    other = ledger.get(ledger.running())
    publish.commit(service.database, other, published, "w1", 7)
    with ledger.transaction() as tx:
        assert adapters.of_job(tx, job.id) is None
        assert adapters.of_job(tx, other.id).weights_sha256 == published.weights_sha256
    assert (ledger.get(other.id).state, ledger.get(other.id).trained_tokens) == ("succeeded", 7)
