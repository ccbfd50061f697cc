"""The queue over the wire: places, refusals that say when to come again, weights and quotas."""

import time

import openai
import pytest

from manylora.api.rate import Rate
from manylora.errors import QuotaError
from manylora.ledger import jobs, lines
from tests.manylora.api.conftest import problem
from tests.manylora.api.test_jobs import make as make  # a fixture

JOBS = "/v1/fine_tuning/jobs"


def tenant_of(make):
    return make().json()["organization_id"]


def test_a_job_that_waits_says_where_and_why(make, service):
    job = make().json()
    assert job["x"]["waiting_for"] is None  # its files are not read yet
    with service.database.transaction() as tx:
        lines.fold(tx, 86_400.0)
    assert make.client.get("/v1/manylora/queue").json()["data"][0]["held"] == 1
    assert make.client.get(f"/v1/manylora/queue/{job['id']}").json()["place"] is None
    with service.database.transaction() as tx:
        jobs.move(tx, job["id"], "accept", actor="s", examples=1)
    with service.database.transaction() as tx:
        lines.fold(tx, 86_400.0)
        lines.pool(tx, "tiny", slots=2, active=2, tenants=1, weights=1.0, reason=None)
    place = make.client.get(f"{JOBS}/{job['id']}").json()["x"]["queue"]
    assert (place["position"], place["ahead"]) == (1, {"yours": 0, "others": 0})
    assert place["reason"] == "all 2 slots of tiny are taken; 0 ahead, 0 of them yours"
    assert place["start"]["p50"] <= place["start"]["p90"] <= place["finish"]["p90"]
    assert make.client.get(f"{JOBS}/{job['id']}").json()["estimated_finish"] > time.time()
    (shown,) = make.client.get("/v1/manylora/queue").json()["data"]
    assert (shown["base"], shown["queued"], shown["share"]["entitled"]) == ("tiny", 1, 1.0)


def test_a_stranger_sees_nothing_of_it(make, http):
    job = make().json()
    problem(http().get(f"/v1/manylora/queue/{job['id']}"), 404, "not_found")
    assert http().get("/v1/manylora/queue").json()["data"] == []


def test_one_over_the_quota_is_refused_with_the_limit_and_when_to_come_again(make, http):
    operator = http(scopes=("tenant", "operator"))
    name = tenant_of(make)
    answer = operator.patch(f"/v1/manylora/tenants/{name}", json={"max_queued": 2})
    assert answer.status_code == 200, answer.text
    assert make(seed=1).status_code == 200
    refused = make(seed=2)
    error = problem(refused, 429, "queued_quota_exceeded")
    assert "2 of your 2 jobs" in error["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert int(refused.headers["retry-after"]) == error["details"]["retry_after"] >= 1
    assert error["details"]["limit"] == 2


def test_the_openai_client_does_not_try_again_what_a_quota_refused(service, api, http, registered):
    tenant, key = service.tenant("quota-openai")
    client = openai.OpenAI(base_url=f"{api}/v1", api_key=key, max_retries=5)
    file = client.files.create(file=("a.jsonl", b'{"prompt": "a", "completion": " b"}\n'),
                               purpose="fine-tune")  # fmt: skip
    operator = http(scopes=("tenant", "operator"))
    operator.patch(f"/v1/manylora/tenants/{tenant.name}", json={"max_queued": 1})
    extra = {"hyperparameters": {"lora_r": 8}}
    client.fine_tuning.jobs.create(model="tiny", training_file=file.id, extra_body=extra)
    with pytest.raises(openai.RateLimitError):
        client.fine_tuning.jobs.create(
            model="tiny", training_file=file.id, seed=3, extra_body=extra
        )
    counted = [
        line for line in operator.get("/metrics").text.splitlines()
        if line.startswith("manylora_api_requests_total{") and "429" in line
    ]  # fmt: skip
    assert [float(line.rpartition(" ")[2]) for line in counted] == [1.0]


@pytest.mark.parametrize("body", [{"weight": 0}, {"max_running": 0}, {"max_queued": -1}])
def test_a_weight_of_nothing_and_a_quota_of_zero_are_refused(make, http, body):
    operator = http(scopes=("tenant", "operator"))
    answer = operator.patch(f"/v1/manylora/tenants/{tenant_of(make)}", json=body)
    error = problem(answer, 400, "invalid_request")
    assert error["param"] == next(iter(body))


def test_only_an_operator_sees_or_sets_tenants(make):
    problem(make.client.get("/v1/manylora/tenants"), 403, "insufficient_permissions")
    answer = make.client.patch("/v1/manylora/tenants/x", json={"weight": 9})
    problem(answer, 403, "insufficient_permissions")


def test_weights_and_quotas_are_listed(make, http):
    operator, name = http(scopes=("tenant", "operator")), tenant_of(make)
    operator.patch(f"/v1/manylora/tenants/{name}", json={"weight": 3, "max_bytes": 10**9})
    listed = operator.get("/v1/manylora/tenants").json()["data"]
    (mine,) = [row for row in listed if row["tenant"] == name]
    assert (mine["weight"], mine["max_bytes"], mine["max_running"]) == (3.0, 10**9, None)


def test_a_deadline_that_is_over_is_refused(make):
    error = problem(make(deadline=int(time.time()) - 5), 400, "invalid_request")
    assert error["param"] == "deadline"
    assert "is in the past" in error["message"]
    soon = int(time.time()) + 3600
    assert make(deadline=soon).json()["x"]["deadline"] == soon


def test_bytes_over_the_quota_are_refused(make, http):
    operator, name = http(scopes=("tenant", "operator")), tenant_of(make)
    operator.patch(f"/v1/manylora/tenants/{name}", json={"max_bytes": 40})
    body = {"file": ("more.jsonl", b'{"prompt": "c", "completion": " d e"}\n')}
    answer = make.client.post("/v1/files", data={"purpose": "fine-tune"}, files=body)
    error = problem(answer, 429, "storage_quota_exceeded")
    assert error["details"]["limit"] == 40


def test_requests_a_minute_fill_by_the_second():
    now = [0.0]
    rate, tenant = Rate(lambda: now[0]), object()
    for _ in range(6):
        rate.take(tenant, 6)
    with pytest.raises(QuotaError) as refused:
        rate.take(tenant, 6)
    assert refused.value.details == {"limit": 6, "used": 6, "retry_after": 10}
    now[0] += 10.0
    rate.take(tenant, 6)
    with pytest.raises(QuotaError):
        rate.take(tenant, 6)
    rate.take(object(), 6)  # another tenant has a bucket of its own


def test_requests_over_the_quota_are_refused(make, http):
    operator, name = http(scopes=("tenant", "operator")), tenant_of(make)
    operator.patch(f"/v1/manylora/tenants/{name}", json={"max_requests": 2})
    answers = [make.client.get(JOBS) for _ in range(4)]
    assert {a.status_code for a in answers} == {200, 429}
    error = problem(answers[-1], 429, "rate_limit_exceeded")
    assert answers[-1].headers["retry-after"] == str(error["details"]["retry_after"])
    operator.patch(f"/v1/manylora/tenants/{name}", json={"max_requests": None})
    assert make.client.get(JOBS).status_code == 200
