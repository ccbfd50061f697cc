"""Health: each part by its name, and a part that is away is named."""

import httpx2
import pytest

from manylora.ledger import workers
from manylora.settings import Settings

DEAD = {
    "database": {"database_url": "postgresql://a:b@127.0.0.1:1/x"},
    "broker": {"broker_url": "redis://127.0.0.1:1/0"},
    "store": {"s3_endpoint": "http://127.0.0.1:1"},
}


@pytest.fixture
def ticked(service):
    """A scheduler has just made a round."""
    with service.database.transaction() as tx:
        workers.tick(tx, "test")


def test_all_is_well(api, ticked):
    assert httpx2.get(f"{api}/healthz").json()["status"] == "ok"
    answer = httpx2.get(f"{api}/readyz", timeout=30)
    assert answer.status_code == 200
    parts = ("database", "schema", "store", "broker", "scheduler")
    assert answer.json() == {"ready": True, "checks": dict.fromkeys(parts, "ok")}


@pytest.mark.parametrize("part", DEAD)
def test_the_part_that_is_away_is_named(serve, service, ticked, part):
    dead = Settings(**DEAD[part])
    changed = {key: getattr(dead, key) for key in DEAD[part]}
    base = serve(service.settings.model_copy(update=changed))
    answer = httpx2.get(f"{base}/readyz", timeout=60)
    assert answer.status_code == 503
    checks = answer.json()["checks"]
    assert "cannot be reached" in checks[part]
    if part != "database":
        assert {name for name, found in checks.items() if found != "ok"} == {part}
    assert httpx2.get(f"{base}/healthz").status_code == 200


def test_status_counts_what_waits(http, ticked):
    status = http().get("/v1/manylora/status").json()
    assert {"validating_files", "queued", "dispatched", "running"} <= set(status["queue"])
    assert 0 <= status["scheduler_tick_age"] < 30
    assert {"version", "schema", "slots", "busy", "workers"} <= set(status)
