"""A base comes onto another machine, whole and verified; damage is found and mended."""

import threading

import pytest

from manylora import keys
from manylora.errors import IntegrityError, NotFoundError
from manylora.storage.store import sha256_of
from worker.bases import card as cards
from worker.bases.fetch import ensure
from worker.trainer.load import load_base

WEIGHTS = "model.safetensors"


@pytest.fixture
def asked(service, monkeypatch):
    """The names of the files that were asked of the store."""
    names = []
    real = service.store.get_file

    def noted(key, path, sha256):
        names.append(path.name)
        real(key, path, sha256)

    monkeypatch.setattr(service.store, "get_file", noted)
    return names


@pytest.fixture
def key(service, registered):
    """The store's key of the weights; what lies there is put back at the end."""
    key = keys.base_key(registered.fingerprint, WEIGHTS)
    body = service.store.get_bytes(key)
    yield key
    service.store.put_bytes(key, body)


def test_another_machine_fetches_and_verifies(service, registered, tiny_base, tmp_path, asked):
    card, here = tiny_base
    folder = ensure(service.store, tmp_path / "cache", registered)
    assert folder == tmp_path / "cache" / card.fingerprint
    assert sorted(asked) == sorted(f["name"] for f in card.files)
    for file in card.files:
        assert sha256_of(folder / file["name"]) == file["sha256"]
        assert (folder / file["name"]).read_bytes() == (here / file["name"]).read_bytes()
    there = cards.read(folder)
    assert (there.fingerprint, there.files, there.layers) == (
        card.fingerprint, card.files, card.layers,
    )  # fmt: skip
    assert load_base(folder, "cpu", None).config.model_type == "llama"
    asked.clear()
    assert ensure(service.store, tmp_path / "cache", registered) == folder
    assert asked == []  # once


def test_where_the_base_was_made_nothing_is_fetched(service, registered, tiny_base, asked):
    _, folder = tiny_base
    assert ensure(service.store, folder.parent, registered) == folder
    assert asked == []


@pytest.mark.parametrize("damage", ["changed", "missing", "interrupted"])
def test_a_damaged_file_is_fetched_again_and_only_that(
    service, registered, tmp_path, asked, damage
):
    folder = ensure(service.store, tmp_path, registered)
    good = (folder / WEIGHTS).read_bytes()
    asked.clear()
    if damage == "changed":
        (folder / WEIGHTS).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    else:
        (folder / WEIGHTS).unlink()
    if damage == "interrupted":
        (folder / cards.CARD).unlink()
    ensure(service.store, tmp_path, registered)
    assert asked == [WEIGHTS]
    assert (folder / WEIGHTS).read_bytes() == good
    assert (folder / cards.CARD).is_file()


def test_damage_in_the_store_is_refused_and_mended_by_a_new_upload(
    service, registered, tmp_path, key
):
    good = service.store.get_bytes(key)
    service.store.put_bytes(key, good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(IntegrityError):
        ensure(service.store, tmp_path, registered)
    folder = tmp_path / registered.fingerprint
    assert not (folder / cards.CARD).exists()  # it does not pass for a base
    assert not (folder / WEIGHTS).exists()
    service.store.delete(key)
    with pytest.raises(NotFoundError):
        ensure(service.store, tmp_path, registered)
    service.store.put_bytes(key, good)
    assert ensure(service.store, tmp_path, registered) == folder
    assert (folder / WEIGHTS).read_bytes() == good


def test_two_workers_of_a_machine_fetch_it_once(service, registered, tmp_path, asked):
    found, barrier = [], threading.Barrier(2)

    def fetch():
        barrier.wait(20)
        found.append(ensure(service.store, tmp_path, registered))

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [tmp_path / registered.fingerprint] * 2
    assert len(asked) == len(registered.files)
