"""What `doctor` finds, on real servers that are up and away, and how the command says it."""

import json
import shutil
from collections import namedtuple

import pytest
import redis
import structlog
from sqlalchemy import text

from manylora import doctor
from manylora.cli import main
from manylora.doctor import examine
from manylora.ledger import jobs, schema, webhooks, workers
from manylora.settings import Settings
from manylora.storage.store import Store
from tests.manylora.api.conftest import serve  # noqa: F401  (a fixture)
from tests.manylora.ledger.conftest import make_ledger

NAMES = [
    "settings", "disk", "database", "schema", "broker", "store", "scheduler", "workers",
    "webhooks", "clock", "api",
]  # fmt: skip


def found(settings):
    return {one.name: one for one in examine(settings)}


def changed(service, **given):
    read = Settings(**given)
    return service.settings.model_copy(update={name: getattr(read, name) for name in given})


def report(service, name="w1", **columns):
    given = {
        "device_kind": "cpu", "slots": 4, "pinned": False, "fingerprint": None, "queue": "q",
        "state": "ready", "note": None, "facts": {}, "assigned_base": None, **columns,
    }  # fmt: skip
    with service.database.transaction() as tx:
        workers.report(tx, name, **given)


@pytest.fixture
def well(service, serve, monkeypatch):  # noqa: F811
    """A service of which every part is well; its settings."""
    with service.database.transaction() as tx:
        tx.execute(text("DELETE FROM deliveries"))
        tx.execute(text("DELETE FROM schedulers"))
        workers.tick(tx, "test")
    report(service)
    _free(monkeypatch, 100 << 30)
    return service.settings.model_copy(update={"api_url": serve(service.settings)})


def _free(monkeypatch, free):
    usage = namedtuple("usage", "total used free")(1 << 40, (1 << 40) - free, free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def test_all_is_well(well):
    seen = found(well)
    assert list(seen) == NAMES
    assert {one.name: one.message for one in seen.values() if one.state != "ok"} == {}
    assert not any(one.hint for one in seen.values())
    assert "PostgreSQL 18" in seen["database"].message
    assert "conditional puts hold" in seen["store"].message
    assert "Valkey" in seen["broker"].message
    assert "1 ready of 1, 4 slots" in seen["workers"].message


def test_it_leaves_nothing_in_the_bucket(well, service):
    examine(well)
    assert service.store.list("probe/") == []


AWAY = {
    "database": {"database_url": "postgresql://a:b@127.0.0.1:1/x"},
    "broker": {"broker_url": "redis://127.0.0.1:1/0"},
    "store": {"s3_endpoint": "http://127.0.0.1:1"},
    "api": {"api_url": "http://127.0.0.1:1"},
}


@pytest.mark.parametrize("part", AWAY)
def test_a_part_that_is_away_is_named_with_what_to_do(well, service, part):
    read = Settings(**AWAY[part])
    seen = found(well.model_copy(update={name: getattr(read, name) for name in AWAY[part]}))
    assert seen[part].state == ("warn" if part == "api" else "fail")
    assert seen[part].hint
    rest = {one.name for one in seen.values() if one.state not in ("ok", "skip")} - {part}
    assert rest == set()
    skipped = {one.name for one in seen.values() if one.state == "skip"}
    needs = {"schema", "scheduler", "workers", "webhooks", "clock"}
    assert skipped == (needs if part == "database" else set())


def test_a_bucket_that_is_not_there_is_named(well):
    seen = found(well.model_copy(update={"s3_bucket": "no-such-bucket"}))
    assert seen["store"].message == "there is no bucket no-such-bucket"
    assert "migrate.py" in seen["store"].hint


def test_a_wrong_password_is_not_shown(well):
    url = well.database_url.get_secret_value().replace("@", "-wrong@")
    seen = found(well.model_copy(update={"database_url": Settings(database_url=url).database_url}))
    assert seen["database"].state == "fail"
    assert "-wrong" not in str(seen)


def test_an_address_that_is_none_is_said_so(call):
    code, out = call("--json", MANYLORA_DATABASE_URL="no address with secret")
    assert code == 2
    assert "MANYLORA_DATABASE_URL is not the address" in out
    assert "no address with secret" not in out


def test_an_older_schema_says_how_to_upgrade(well, monkeypatch):
    monkeypatch.setattr(schema, "head", lambda: "9999")
    seen = found(well)
    assert seen["schema"].state == "fail"
    assert "manylora db upgrade" in seen["schema"].hint
    assert seen["workers"].state == "skip"


def test_a_store_that_overwrites_is_a_warning(well, monkeypatch):
    class Careless(Store):
        def put_bytes(self, key, body, *, if_absent=False):
            return super().put_bytes(key, body)

    monkeypatch.setattr(doctor, "Store", Careless)
    seen = found(well)["store"]
    assert seen.state == "warn"
    assert "If-None-Match" in seen.message


def test_a_broker_that_evicts_is_a_warning(well):
    client = redis.Redis.from_url(well.broker_url.get_secret_value())
    before = client.config_get("maxmemory*")
    client.config_set("maxmemory", "100mb")
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        seen = found(well)["broker"]
    finally:
        client.config_set("maxmemory-policy", before["maxmemory-policy"])
        client.config_set("maxmemory", before["maxmemory"])
        client.close()
    assert seen.state == "warn"
    assert "allkeys-lru" in seen.message
    assert found(well)["broker"].state == "ok"


def test_no_scheduler_and_no_worker(well, service):
    with service.database.transaction() as tx:
        tx.execute(text("DELETE FROM schedulers"))
        tx.execute(text("UPDATE workers SET state = 'gone'"))
    seen = found(well)
    assert (seen["scheduler"].state, seen["workers"].state) == ("fail", "warn")
    assert "manylora scheduler" in seen["scheduler"].hint
    assert "manylora worker" in seen["workers"].hint


def test_workers_that_cannot_help_are_a_warning(well, service):
    ledger = make_ledger(service.database)
    ledger.job()
    seen = found(well)["workers"]
    assert seen.state == "warn"
    assert f"1 jobs wait for {ledger.base.name}" in seen.message
    report(service, assigned_base=ledger.base.name)
    assert found(well)["workers"].state == "ok"
    report(service, "w2", state="loading", note="cannot fetch it")
    assert "w2: cannot fetch it" in found(well)["workers"].message
    report(service, "w2", facts={"manylora": "0.0.1"})
    assert "some run manylora 0.0.1" in found(well)["workers"].message


def test_messages_that_are_late_are_a_warning(well, service):
    ledger = make_ledger(service.database)
    kinds = set(webhooks.TYPES.values())
    with service.database.transaction() as tx:
        webhooks.add(tx, ledger.tenant.id, url="https://a.example/", types=kinds, most=1)
    job_id = ledger.job()
    with service.database.transaction() as tx:
        jobs.cancel(tx, ledger.tenant.id, job_id)
    assert "1 messages pending" in found(well)["webhooks"].message
    with service.database.transaction() as tx:
        tx.execute(text("UPDATE deliveries SET next_at = next_at - interval '10 min'"))
    assert found(well)["webhooks"].state == "warn"


@pytest.mark.parametrize(("gib", "state"), [(100, "ok"), (5, "warn"), (0.5, "fail")])
def test_disk_space(well, monkeypatch, gib, state):
    _free(monkeypatch, int(gib * (1 << 30)))
    seen = found(well)["disk"]
    assert seen.state == state
    assert "GB free" in seen.message


@pytest.mark.parametrize(("off", "state"), [(0.0, "ok"), (5.0, "warn"), (-300.0, "fail")])
def test_a_clock_that_is_off(well, monkeypatch, off, state):
    real = doctor.time.time
    monkeypatch.setattr(doctor.time, "time", lambda: real() + off)
    assert found(well)["clock"].state == state


def test_secrets_others_may_read_are_a_warning(well):
    well.home.mkdir(parents=True, exist_ok=True)
    (well.home / "service.env").write_text("")
    (well.home / "service.env").chmod(0o644)
    seen = found(well)["settings"]
    assert seen.state == "warn"
    assert seen.hint.startswith("chmod 600 ")
    (well.home / "service.env").chmod(0o600)
    assert found(well)["settings"].state == "ok"


@pytest.fixture
def call(well, monkeypatch, capsys, tmp_path):
    """call(*words, name=value) -> exit code, stdout, of `manylora doctor` on that service."""

    def run(*words, **env):
        monkeypatch.chdir(tmp_path)
        for name in ("database_url", "broker_url", "s3_access_key", "s3_secret_key", "key_pepper"):
            monkeypatch.setenv(f"MANYLORA_{name.upper()}", getattr(well, name).get_secret_value())
        for name in ("home", "s3_endpoint", "s3_bucket", "api_url"):
            monkeypatch.setenv(f"MANYLORA_{name.upper()}", str(getattr(well, name)))
        for name, given in env.items():
            monkeypatch.setenv(name, given)
        with structlog.testing.capture_logs():  # of the API, which is in this process
            code = main.run(["doctor", *words])
        return code, capsys.readouterr().out

    return run


def test_the_command_says_it_and_its_exit_code_counts_failures(call):
    code, out = call()
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == NAMES
    code, out = call(MANYLORA_BROKER_URL="redis://127.0.0.1:1/0")
    assert code == 1
    assert "fail  broker" in out
    assert "is Valkey up" in out


def test_as_json(call):
    code, out = call("--json", MANYLORA_API_URL="http://127.0.0.1:1")
    told = json.loads(out)
    assert (code, told["ok"]) == (0, True)  # a warning is no failure
    assert [one["name"] for one in told["checks"]] == NAMES
    assert told["checks"][-1]["state"] == "warn"
    code, out = call("--json", MANYLORA_S3_ENDPOINT="http://127.0.0.1:1")
    told = json.loads(out)
    assert (code, told["ok"]) == (1, False)
    assert {"name", "state", "message", "hint"} == set(told["checks"][0])


def test_no_secret_is_printed(call, well):
    for words in ((), ("--json",)):
        _, out = call(*words)
        for name in ("database_url", "broker_url", "s3_secret_key", "key_pepper"):
            assert getattr(well, name).get_secret_value() not in out
