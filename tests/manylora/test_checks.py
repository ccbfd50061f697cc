"""Each part is asked on real servers: up, and away; the answer says what to do."""

import pytest
from sqlalchemy import text

from manylora.checks import all_good, ask, service_checks
from manylora.errors import UnavailableError
from manylora.ledger import schema, workers
from manylora.ledger.database import Database
from manylora.settings import Settings
from manylora.storage.store import Store

PARTS = ["database", "schema", "store", "broker", "scheduler"]
AWAY = {
    "database": {"database_url": "postgresql://a:b@127.0.0.1:1/x"},
    "broker": {"broker_url": "redis://127.0.0.1:1/0"},
    "store": {"s3_endpoint": "http://127.0.0.1:1"},
}


def asked(settings):
    database = Database(settings.database_url.get_secret_value())
    try:
        return ask(service_checks(settings, database, Store(settings)))
    finally:
        database.close()


def changed(service, **given):
    dead = Settings(**given)
    return service.settings.model_copy(update={name: getattr(dead, name) for name in given})


@pytest.fixture
def ticked(service):
    with service.database.transaction() as tx:
        workers.tick(tx, "test")


def test_all_is_well(service, ticked):
    found = asked(service.settings)
    assert found == dict.fromkeys(PARTS, "ok")
    assert all_good(found)


@pytest.mark.parametrize("part", AWAY)
def test_what_is_away_is_named_with_what_to_do(service, ticked, part):
    found = asked(changed(service, **AWAY[part]))
    wrong = {name for name, said in found.items() if said != "ok"}
    assert wrong == ({"database", "schema", "scheduler"} if part == "database" else {part})
    assert "cannot be reached" in found[part]
    assert ";" in found[part]
    assert not all_good(found)


def test_a_broker_address_that_is_none_is_said_so(service, ticked):
    assert "cannot be reached" in asked(changed(service, broker_url="http://x/"))["broker"]


def test_a_schema_of_another_version_is_named(service, ticked, monkeypatch):
    monkeypatch.setattr(schema, "head", lambda: "9999")
    found = asked(service.settings)
    assert "needed is 9999" in found["schema"]
    assert "manylora db upgrade" in found["schema"]


def test_a_scheduler_that_stopped_ticking_is_told_with_its_age(service, ticked):
    with service.database.transaction() as tx:
        tx.execute(text("UPDATE schedulers SET ticked_at = clock_timestamp() - interval '1 hour'"))
    assert "no scheduler has made a round for 36" in asked(service.settings)["scheduler"]
    with service.database.transaction() as tx:
        tx.execute(text("DELETE FROM schedulers"))
    assert "no scheduler has made a round ever" in asked(service.settings)["scheduler"]


def test_an_error_without_a_hint_brings_that_of_its_kind():
    def check():
        raise UnavailableError("gone")

    assert ask({"x": check}) == {"x": f"gone; {UnavailableError.default_hint}"}
