"""Registering a base over HTTP, its files put straight into the store."""

import hashlib
import json
import uuid

import httpx2
import pytest

from tests.manylora.api.conftest import problem

BASES = "/v1/manylora/bases"
FILES = {"config.json": b"{}", "model.safetensors": uuid.uuid4().bytes * 64}


def card(name, **changed):
    digests = {file: hashlib.sha256(body).hexdigest() for file, body in FILES.items()}
    canonical = json.dumps(
        {"dtype": "float32", "files": digests}, sort_keys=True, separators=(",", ":")
    )
    return {
        "name": name,
        "fingerprint": hashlib.sha256(canonical.encode()).hexdigest(),
        "dtype": "float32",
        "architecture": "LlamaForCausalLM",
        "source": "a test",
        "parameters": 10,
        "hidden_size": 16,
        "bytes": sum(len(body) for body in FILES.values()),
        "chat_template": None,
        "files": [
            {"name": file, "sha256": digests[file], "bytes": len(body)}
            for file, body in FILES.items()
        ],
        "layers": {"model.layers.0.self_attn.q_proj": [16, 16]},
    } | changed


@pytest.fixture
def operator(http):
    return http(("tenant", "operator"))


@pytest.fixture
def name(operator):
    """A base's name; what is registered under it goes away again."""
    chosen = f"b-{uuid.uuid4().hex[:8]}"
    yield chosen
    operator.delete(f"{BASES}/{chosen}")


def test_from_announced_to_ready_to_gone(operator, name):
    started = operator.post(BASES, json=card(name)).json()
    assert started["base"]["state"] == "uploading"
    assert {upload["name"] for upload in started["uploads"]} == set(FILES)
    assert name not in [model["id"] for model in operator.get("/v1/models").json()["data"]]
    first, last = started["uploads"]
    put(first)
    lacking = problem(operator.post(f"{BASES}/{name}/complete"), 400, "invalid_state")
    assert last["name"] in lacking["message"]
    assert first["name"] not in lacking["message"]
    again = operator.post(BASES, json=card(name)).json()
    assert [upload["name"] for upload in again["uploads"]] == [last["name"]]
    put(last)
    assert operator.post(f"{BASES}/{name}/complete").json()["state"] == "ready"
    assert name in [base["name"] for base in operator.get(BASES).json()["data"]]
    assert operator.get(f"/v1/models/{name}").json()["id"] == name
    assert operator.delete(f"{BASES}/{name}").json() == {"name": name, "deleted": True}
    problem(operator.get(f"/v1/models/{name}"), 404, "model_not_found")


def test_a_quantisation_is_part_of_the_fingerprint(operator, name):
    digests = {file: hashlib.sha256(body).hexdigest() for file, body in FILES.items()}
    named = {"dtype": "bfloat16", "files": digests, "quantization": "int4-g32"}
    canonical = json.dumps(named, sort_keys=True, separators=(",", ":"))
    whole = {"dtype": "bfloat16", "quantization": "int4-g32"}
    wrong = problem(operator.post(BASES, json=card(name, **whole)), 400, "invalid_request")
    assert wrong["param"] == "fingerprint"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    odd = card(name, **whole | {"quantization": "int4-g0"}, fingerprint=digest)
    assert operator.post(BASES, json=odd).status_code == 400
    started = operator.post(BASES, json=card(name, **whole, fingerprint=digest)).json()
    assert started["base"]["quantization"] == "int4-g32"
    for upload in started["uploads"]:
        put(upload)
    assert operator.post(f"{BASES}/{name}/complete").json()["quantization"] == "int4-g32"


def put(upload, body=None):
    body = FILES[upload["name"]] if body is None else body
    answer = httpx2.put(upload["url"], content=body, headers=upload["headers"])
    assert answer.status_code == 200, answer.text


def test_the_store_takes_no_other_bytes(operator, name):
    fresh = {
        "dtype": "float32",
        "files": {"config.json": hashlib.sha256(name.encode()).hexdigest()},
    }
    digest = hashlib.sha256(json.dumps(fresh, sort_keys=True, separators=(",", ":")).encode())
    file = {"name": "config.json", "sha256": fresh["files"]["config.json"], "bytes": len(name)}
    body = card(name, files=[file], fingerprint=digest.hexdigest())
    (upload,) = operator.post(BASES, json=body).json()["uploads"]
    other = b"x" * len(name)
    assert httpx2.put(upload["url"], content=other, headers=upload["headers"]).status_code >= 400
    assert httpx2.put(upload["url"], content=other).status_code >= 400
    problem(operator.post(f"{BASES}/{name}/complete"), 400, "invalid_state")


def test_what_is_refused(operator, http, name):
    tenant = http()
    problem(tenant.post(BASES, json=card(name)), 403, "insufficient_permissions")
    problem(tenant.post(f"{BASES}/{name}/complete"), 403, "insufficient_permissions")
    problem(tenant.delete(f"{BASES}/{name}"), 403, "insufficient_permissions")
    wrong = problem(operator.post(BASES, json=card(name, dtype="bfloat16")), 400, "invalid_request")
    assert wrong["param"] == "fingerprint"
    for change in (
        {"name": "../x"},
        {"files": []},
        {"files": [{"name": "a/b", "sha256": "0" * 64, "bytes": 1}]},
        {"fingerprint": "x"},
        {"parameters": 2**80},
        {"layers": {"a": [1]}},
    ):
        assert operator.post(BASES, json=card(name) | change).status_code == 400, change
    problem(operator.post(f"{BASES}/{name}/complete"), 404, "not_found")
    problem(operator.delete(f"{BASES}/{name}"), 404, "not_found")


NETWORK = {
    "task": "classification",
    "factory": "mine.nets:cnn",
    "args": {},
    "input": {"shape": [3, 4], "dtype": "float32", "below": None},
    "output": [5],
}


def network_card(name, network):
    plain = card(name)
    digests = {file["name"]: file["sha256"] for file in plain["files"]}
    facts = {"dtype": "float32", "files": digests, "network": network}
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
    return plain | {"network": network, "fingerprint": fingerprint}


def test_a_network_is_part_of_a_base(operator, name):
    started = operator.post(BASES, json=network_card(name, NETWORK))
    assert started.status_code == 200
    assert started.json()["base"]["network"] == NETWORK
    other = network_card(name, NETWORK) | {"network": NETWORK | {"factory": "os:system"}}
    assert operator.post(BASES, json=other).status_code == 400  # not what the fingerprint covers


@pytest.mark.parametrize(
    "change",
    [
        {"factory": "os.system"},
        {"factory": "../x:y"},
        {"task": "segmentation"},
        {"input": None},
        {"output": []},
        {"input": {"shape": [0], "dtype": "float32", "below": None}},
    ],
)
def test_a_network_that_cannot_be_is_refused(operator, name, change):
    answer = operator.post(BASES, json=network_card(name, NETWORK | change))
    assert answer.status_code in (400, 422)


def test_no_tenant_registers_a_network(http, name):
    answer = http().post(BASES, json=network_card(name, NETWORK))
    assert answer.status_code in (401, 403)
