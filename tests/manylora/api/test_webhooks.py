"""Endpoints over HTTP: made, listed, removed; the secret shown once; the deliveries of one."""

import pytest

from manylora.ledger import jobs
from manylora.ledger.tables import Tenant, Webhook
from tests.manylora.api.conftest import problem
from tests.manylora.ledger.conftest import make_ledger

HOOKS = "/v1/manylora/webhooks"
URL = "https://a.example/hook?token=t"
ALL = ["fine_tuning.job.cancelled", "fine_tuning.job.failed", "fine_tuning.job.succeeded"]


def made(client, **body):
    answer = client.post(HOOKS, json={"url": URL} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_from_made_to_removed_with_the_secret_shown_once(http):
    client = http()
    one = made(client)
    assert one["secret"].startswith("whsec_")
    assert (one["object"], one["url"], one["events"]) == ("webhook", URL, ALL)
    two = made(client, events=["fine_tuning.job.failed"])
    listed = client.get(HOOKS)
    assert "whsec_" not in listed.text
    assert [w["id"] for w in listed.json()["data"]] == [one["id"], two["id"]]
    assert listed.json()["data"][1]["events"] == ["fine_tuning.job.failed"]
    gone = client.delete(f"{HOOKS}/{one['id']}").json()
    assert gone == {"id": one["id"], "object": "webhook", "deleted": True}
    assert [w["id"] for w in client.get(HOOKS).json()["data"]] == [two["id"]]
    problem(client.delete(f"{HOOKS}/{one['id']}"), 404, "not_found")
    problem(client.get(f"{HOOKS}/{one['id']}/deliveries"), 404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        {}, {"url": None}, {"url": 5}, {"url": "ftp://a"}, {"url": "http://u:p@a.example/"},
        {"url": "http://127.0.0.1/"}, {"url": "http://169.254.169.254/latest"},
        {"url": "http://[::1]/"}, {"url": "http://localhost:1/"}, {"url": URL, "events": []},
        {"url": URL, "events": ["fine_tuning.job.paused"]}, {"url": URL, "more": 1},
        {"url": "http://a.example/\x00"}, {"url": "x" * 5000},
    ],
)  # fmt: skip
def test_a_bad_one_is_refused(http, body):
    client = http()
    answer = client.post(HOOKS, json=body)
    error = problem(answer, 400, "invalid_request")
    assert "u:p" not in error["message"]
    assert client.get(HOOKS).json()["data"] == []


def test_an_inner_network_may_be_allowed(http, serve, service):
    settings = service.settings.model_copy(update={"webhook_networks": "127.0.0.0/8"})
    client = http(base=serve(settings))
    assert made(client, url="http://127.0.0.1:9/")["url"] == "http://127.0.0.1:9/"
    problem(client.post(HOOKS, json={"url": "http://10.0.0.1/"}), 400, "invalid_request")


def test_their_number_is_limited(http, serve, service):
    client = http(base=serve(service.settings.model_copy(update={"max_webhooks": 2})))
    made(client)
    made(client)
    refused = client.post(HOOKS, json={"url": URL})
    problem(refused, 429, "quota_exceeded")
    assert refused.headers["x-should-retry"] == "false"
    client.delete(f"{HOOKS}/{client.get(HOOKS).json()['data'][0]['id']}")
    made(client)


def test_a_strangers_is_not_there(http):
    one = made(http())
    stranger = http()
    problem(stranger.delete(f"{HOOKS}/{one['id']}"), 404, "not_found")
    problem(stranger.get(f"{HOOKS}/{one['id']}/deliveries"), 404, "not_found")
    assert stranger.get(HOOKS).json()["data"] == []
    assert http(scopes=("tenant", "operator")).get(HOOKS).json()["data"] == []


def test_the_deliveries_of_one_page_by_page(http, service):
    client = http()
    one = made(client)
    ledger = make_ledger(service.database)
    with service.database.transaction() as tx:
        tenant_id = tx.get_one(Webhook, one["id"]).tenant_id
        ledger.tenant = tx.get_one(Tenant, tenant_id)
    ended = []
    for _ in range(3):
        ended.append(ledger.job())
        with service.database.transaction() as tx:
            jobs.cancel(tx, tenant_id, ended[-1])
    url = f"{HOOKS}/{one['id']}/deliveries"
    first = client.get(url, params={"limit": 2}).json()
    assert [d["job_id"] for d in first["data"]] == ended[:0:-1]
    assert first["has_more"]
    rest = client.get(url, params={"limit": 2, "after": first["last_id"]}).json()
    assert [d["job_id"] for d in rest["data"]] == ended[:1]
    assert not rest["has_more"]
    (last,) = rest["data"]
    assert (last["state"], last["attempts"], last["type"]) == (
        "pending", 0, "fine_tuning.job.cancelled",
    )  # fmt: skip
    assert last["next_at"] is not None
    assert last["settled_at"] is None
    problem(client.get(url, params={"after": "evt_none"}), 404, "not_found")
