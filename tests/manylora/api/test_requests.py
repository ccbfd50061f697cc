"""What holds for every request: ids, bounds, keys, and the one shape of errors."""

import json

import httpx2
import pytest

from manylora.ledger.tables import Adapter, Job
from manylora.settings import Settings
from tests.manylora.api.conftest import problem

JOBS = "/v1/fine_tuning/jobs"
TINY = {"model": "tiny", "hyperparameters": {"lora_r": 8}}


def chunks(count, size=1 << 16):
    for _ in range(count):
        yield b" " * size


def test_unknown_urls_and_methods(api):
    problem(httpx2.get(f"{api}/v1/nothing"), 404, "unknown_url")
    refused = httpx2.delete(f"{api}/healthz")
    problem(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "GET"


def test_every_answer_has_a_request_id_and_takes_a_plain_one(api):
    assert httpx2.get(f"{api}/healthz").headers["x-request-id"].startswith("req_")
    given = httpx2.get(f"{api}/healthz", headers={"x-request-id": "req_abc-1"})
    assert given.headers["x-request-id"] == "req_abc-1"
    strange = httpx2.get(f"{api}/healthz", headers={"x-request-id": "a b<c>"})
    assert strange.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_a_body_is_bounded_whether_it_says_its_length_or_not(http, method):
    client = http()
    url = JOBS if method == "POST" else f"{JOBS}/ftjob-x"
    if method == "POST":
        problem(client.request(method, url, content=chunks(40)), 413, "body_too_large")
    big = client.request(method, url, content=b" " * (2 << 20))
    problem(big, 413, "body_too_large")
    as_form = {"content-type": "multipart/form-data; boundary=x"}
    problem(
        client.request(method, url, content=b" " * (2 << 20), headers=as_form),
        413,
        "body_too_large",
    )


def test_an_upload_is_bounded(serve, service, http, dataset):
    settings = service.settings.model_copy(update={"max_file_bytes": 100_000})
    client = http(base=serve(settings))
    dataset(client, b"x" * 100_000)
    for size in (100_001, 5_000_000):
        answer = client.post(
            "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", b"x" * size)}
        )
        assert problem(answer, 400, "file_too_large")["param"] == "file"


def test_a_stranger_is_turned_away_before_the_upload_is_read(api):
    """A form that cannot be parsed: had it been read first, this would be a 400."""
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = httpx2.post(f"{api}/v1/files", content=b"no form" * 10_000, headers=headers)
    problem(answer, 401, "invalid_api_key")


@pytest.mark.parametrize("key", ["wrong", "ml_000000000000_" + "x" * 43])
def test_a_wrong_key_says_how_to_come_back(api, key):
    answer = httpx2.get(f"{api}/v1/models", headers={"Authorization": f"Bearer {key}"})
    problem(answer, 401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b'{"model": 1}'])
def test_malformed_json_is_a_400(http, body):
    answer = http().post(JOBS, content=body, headers={"content-type": "application/json"})
    problem(answer, 400, "invalid_request")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/%00",
        "/v1/files?after=%00",
        f"{JOBS}/%00",
        f"{JOBS}?after=%00",
        f"{JOBS}?metadata[a]=%00",
        "/v1/models/%00",
        "/v1/models/ft:%00",
        "/v1/manylora/adapters/%00",
    ],
)
def test_a_nul_in_a_name_is_the_callers_mistake(http, path):
    answer = http().get(path)
    assert answer.status_code in (400, 404), answer.text
    assert answer.headers["x-request-id"]
    assert answer.json()["error"]["code"]


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"a": "\0"}},
        {"model": "\0"},
        {"hyperparameters": {"lora_r": 8, "max_grad_norm": float("inf")}},
        {"hyperparameters": {"\ud800": 1}},
        {"method": {"type": "\ud800"}},
        {"metadata": {"\ud800": "a"}},
        {"priority": 2**70},
    ],
)
def test_values_no_column_can_hold_are_the_callers_mistake(http, dataset, registered, change):
    client = http()
    body = TINY | {"training_file": dataset(client)} | change
    answer = client.post(
        JOBS, content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"]
    assert client.get(JOBS).json()["data"] == []


def test_a_huge_step_is_refused(http, dataset, registered):
    client = http()
    job = client.post(JOBS, json=TINY | {"training_file": dataset(client)}).json()
    answer = client.get(f"/v1/manylora/jobs/{job['id']}/metrics?after_step={2**70}")
    assert answer.status_code == 400, answer.text
    client.post(f"{JOBS}/{job['id']}/cancel")


@pytest.mark.parametrize("name", ["a\0b.jsonl", "../../x.jsonl", "ü.jsonl", "x" * 300, '"\r\n.j'])
def test_any_filename_is_taken_as_a_plain_one(http, dataset, name):
    client = http()
    seen = client.get(f"/v1/files/{dataset(client, name=name)}").json()["filename"]
    assert seen
    assert len(seen) <= 255
    assert "/" not in seen
    assert "\0" not in seen


@pytest.mark.parametrize(
    ("data", "files", "param"),
    [
        ({}, {"file": ("a", b"x")}, "purpose"),
        ({"purpose": "batch"}, {"file": ("a", b"x")}, "purpose"),
        ({"purpose": "fine-tune"}, {}, "file"),
        ({"purpose": "fine-tune"}, {"file": ("a", b"")}, "file"),
        ({"purpose": "fine-tune", "file": "text"}, {}, "file"),
    ],
)
def test_an_upload_that_is_none_names_its_field(http, data, files, param):
    answer = http().post("/v1/files", data=data, files=files or None)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_a_database_that_is_away_is_a_503_to_try_again(serve, service):
    url = Settings(database_url="postgresql://a:b@127.0.0.1:1/x").database_url
    base = serve(service.settings.model_copy(update={"database_url": url}))
    key = "ml_000000000000_" + "x" * 43
    answer = httpx2.get(f"{base}/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=30)
    problem(answer, 503, "unavailable")
    assert answer.headers["retry-after"] == "2"


def test_a_mistake_of_ours_is_a_500_that_tells_nothing(service, http, dataset, registered):
    """A manifest that is not JSON: nobody foresaw it, so nobody may see inside."""
    client = http()
    job = client.post(JOBS, json=TINY | {"training_file": dataset(client)}).json()
    with service.database.transaction() as tx:
        row = tx.get(Job, job["id"])
        prefix = f"t/{row.tenant_id}/j/{row.id}/a/000001"
        digest = service.store.put_bytes(f"{prefix}/manifest.json", b"secret, not JSON")
        tx.add(
            Adapter(
                name=f"ft:tiny:{row.id}",
                tenant_id=row.tenant_id,
                job_id=row.id,
                attempt=1,
                source_attempt=1,
                base="tiny",
                base_fingerprint=row.base_fingerprint,
                prefix=f"{prefix}/adapter",
                manifest_key=f"{prefix}/manifest.json",
                manifest_sha256=digest,
                weights_sha256=digest,
                bytes=1,
            )
        )
    answer = client.get(f"/v1/manylora/adapters/{job['id']}", headers={"x-request-id": "mine"})
    error = problem(answer, 500, "internal_error")
    assert error["type"] == "server_error"
    assert "secret" not in answer.text
    assert "JSON" not in answer.text
    assert answer.headers["x-request-id"] == "mine"
    client.post(f"{JOBS}/{job['id']}/cancel")
