"""/metrics of the API: requests by the route's template, errors by code, nobody's name."""

import uuid

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture
def scrape(api):
    """scrape() -> {(name, labels): value} of the API's samples."""

    def samples():
        answer = httpx2.get(f"{api}/metrics", timeout=60)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain")
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }

    return samples


def requests(samples, method, route, status):
    labels = (("method", method), ("route", route), ("status", status))
    return samples.get(("manylora_api_requests_total", labels), 0)


def test_requests_and_errors_are_counted(api, http, scrape):
    client = http()
    for _ in range(2):
        client.get(f"/v1/fine_tuning/jobs/ftjob-{uuid.uuid4().hex}")
    client.get("/v1/fine_tuning/jobs")
    client.post("/v1/fine_tuning/jobs", content=b" " * (2 << 20))
    httpx2.get(f"{api}/v1/models", timeout=60)
    httpx2.get(f"{api}/no/{uuid.uuid4().hex}")
    httpx2.request("BREW", f"{api}/healthz", timeout=60)
    seen = scrape()
    assert requests(seen, "GET", "/v1/fine_tuning/jobs/{job_id}", "404") == 2
    assert requests(seen, "GET", "/v1/fine_tuning/jobs", "200") == 1
    assert requests(seen, "GET", "/v1/models", "401") == 1
    assert requests(seen, "GET", "none", "404") == 1
    assert requests(seen, "other", "/healthz", "405") + requests(seen, "other", "none", "405") == 1
    errors = {
        labels[0][1]: count
        for (name, labels), count in seen.items()
        if name == "manylora_api_errors_total"
    }
    assert errors == {
        "not_found": 2, "body_too_large": 1, "invalid_api_key": 1, "unknown_url": 1,
        "method_not_allowed": 1,
    }  # fmt: skip
    latency = "manylora_api_request_seconds_count"
    assert seen[latency, (("method", "GET"), ("route", "/v1/fine_tuning/jobs/{job_id}"))] == 2


def test_no_value_of_a_client_is_in_a_label(api, http, scrape):
    client = http()
    mark = uuid.uuid4().hex
    client.get(f"/v1/fine_tuning/jobs/ftjob-{mark}", params={"q": mark})
    client.get(f"/v1/models/{mark}")
    httpx2.get(f"{api}/{mark}", headers={"x-request-id": mark}, timeout=60)
    assert mark not in str(scrape().keys())


def test_a_mistake_of_the_servers_is_an_internal_error(serve, service, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("manylora.api.routes.health.ask", broken)
    base = serve(service.settings)
    assert httpx2.get(f"{base}/readyz", timeout=60).status_code == 500
    shown = httpx2.get(f"{base}/metrics", timeout=60).text
    assert 'manylora_api_errors_total{code="internal_error"} 1.0' in shown
    assert 'route="/readyz",status="500"} 1.0' in shown
