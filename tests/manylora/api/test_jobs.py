"""Jobs over the wire: repeats, filters, every key there, strangers kept out. The plain way through
with the openai client is in `test_openai_client.py`."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.manylora.api.conftest import problem

JOBS = "/v1/fine_tuning/jobs"
AGAIN = {"x-stainless-retry-count": "1"}
KEYS = {
    "object", "id", "created_at", "model", "status", "fine_tuned_model", "finished_at",
    "estimated_finish", "organization_id", "result_files", "training_file", "validation_file",
    "trained_tokens", "hyperparameters", "method", "seed", "metadata", "integrations", "error",
    "user_provided_suffix", "x",
}  # fmt: skip
X_KEYS = {
    "step", "total_steps", "priority", "attempt", "waiting_for", "base_fingerprint",
    "adapter_uri", "manifest_sha256", "device_seconds", "cost", "currency", "examples",
    "started_at", "hyperparameters",
}  # fmt: skip


@pytest.fixture
def make(http, dataset, registered):
    """make(**body) -> the answer to a new job; all are cancelled at the end."""
    client, made = http(), []
    file = dataset(client)

    def post(headers=None, of=client, **body):
        small = {"lora_r": 8}  # the tiny base's layers take no more than 16
        body = {"model": "tiny", "training_file": file, "hyperparameters": small} | body
        answer = of.post(JOBS, json=body, headers=headers)
        if answer.status_code == 200:
            made.append(answer.json()["id"])
        return answer

    post.client, post.file = client, file
    yield post
    for job in set(made):
        client.post(f"{JOBS}/{job}/cancel")


def test_every_key_is_there(make):
    job = make(priority=7, seed=11, suffix="a.b-c_D").json()
    assert set(job) == KEYS
    assert set(job["x"]) >= X_KEYS
    assert (job["status"], job["error"], job["fine_tuned_model"]) == (
        "validating_files",
        None,
        None,
    )
    assert (job["seed"], job["x"]["priority"], job["user_provided_suffix"]) == (11, 7, "a.b-c_D")
    assert job["hyperparameters"]["n_epochs"] == "auto"
    assert job["x"]["hyperparameters"]["n_epochs"] == 3
    assert (job["x"]["device_seconds"], job["x"]["cost"], job["x"]["adapter_uri"]) == (0, 0, None)
    assert "_body_sha256" not in str(job)


def test_a_request_sent_again_is_the_same_job(make):
    first = make(suffix="one").json()["id"]
    assert make(AGAIN, suffix="one").json()["id"] == first
    assert make(AGAIN, suffix="two").json()["id"] != first
    assert make(suffix="one").json()["id"] != first, "asked for twice, not sent again"


def test_a_repeat_beside_its_first_try_waits_for_it(make):
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: make(AGAIN, suffix="burst").json()["id"], range(8)))
    assert len(set(jobs)) == 1


def test_a_repeat_never_crosses_tenants(make, http, dataset):
    make(suffix="mine")
    stranger = http()
    problem(make(AGAIN, of=stranger, suffix="mine"), 404, "not_found")
    assert stranger.get(JOBS).json()["data"] == []


@pytest.mark.parametrize("count", ["", "x", "-1", "²"])
def test_a_strange_retry_count_is_no_repeat(make, count):
    headers = [(b"x-stainless-retry-count", count.encode("latin-1"))]
    assert make(headers).status_code == 200


def test_jobs_without_metadata_come_in_pages(make):
    plain = [make().json()["id"] for _ in range(3)]
    make(metadata={"a": "b"})
    seen = make.client.get(JOBS, params={"metadata": "null", "limit": 2}).json()
    assert [job["id"] for job in seen["data"]] == plain[:0:-1]
    assert seen["has_more"]
    rest = {"metadata": "null", "limit": 2, "after": seen["last_id"]}
    seen = make.client.get(JOBS, params=rest).json()
    assert ([job["id"] for job in seen["data"]], seen["has_more"]) == (plain[:1], False)


def test_pages_of_events(make):
    job = make().json()["id"]
    make.client.post(f"{JOBS}/{job}/cancel")
    url = f"{JOBS}/{job}/events"
    newest = make.client.get(url, params={"limit": 1}).json()
    assert newest["has_more"]
    older = make.client.get(url, params={"limit": 1, "after": newest["last_id"]}).json()
    assert older["data"][0]["message"] == f"Created fine-tuning job: {job}"
    assert not older["has_more"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"priority": 101}, "priority"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"suffix": ""}, "suffix"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: ""}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
        ({"method": {"type": "dpo"}}, "method.type"),
        (
            {"hyperparameters": {"lora_r": 8, "context_length": 1 << 20}},
            "hyperparameters.context_length",
        ),
        ({"hyperparameters": {"target_modules": "("}}, "hyperparameters.target_modules"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_limits(make, body, param):
    answer = make(**body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_nulls_mean_not_given(make):
    names = ("validation_file", "suffix", "seed", "metadata", "integrations", "method")
    assert make(**dict.fromkeys(names)).status_code == 200


def test_a_stranger_finds_nothing(make, http):
    job = make().json()["id"]
    stranger = http(("tenant", "operator"))
    for method, url in [
        ("GET", f"{JOBS}/{job}"),
        ("POST", f"{JOBS}/{job}/cancel"),
        ("GET", f"{JOBS}/{job}/events"),
        ("GET", f"{JOBS}?after={job}"),
        ("GET", f"{JOBS}?after={job}&metadata=null"),
        ("GET", f"/v1/files/{make.file}"),
        ("GET", f"/v1/files/{make.file}/content"),
        ("GET", f"/v1/files?after={make.file}"),
        ("DELETE", f"/v1/files/{make.file}"),
        ("GET", f"/v1/manylora/jobs/{job}/metrics"),
        ("GET", f"/v1/manylora/adapters/{job}"),
        ("GET", f"/v1/models/ft:tiny:x:{uuid.uuid4()}"),
    ]:
        assert stranger.request(method, url).status_code == 404, url
    assert make.client.get(f"{JOBS}/{job}").json()["status"] == "validating_files"


def test_the_openai_client_filters_and_repeats_like_that(connect, registered):
    client = connect()
    file = client.files.create(
        file=("a.jsonl", b'{"prompt": "a", "completion": "b"}\n'), purpose="fine-tune"
    )
    body = {"model": "tiny", "training_file": file.id, "hyperparameters": {"lora_r": 8}}
    plain = client.fine_tuning.jobs.create(**body)
    again = client.fine_tuning.jobs.create(**body, extra_headers=AGAIN)
    other = client.fine_tuning.jobs.create(**body, metadata={"a": "b"})
    assert again.id == plain.id
    # This client leaves a None out of the query, so "none at all" has to be spelled out.
    bare = client.fine_tuning.jobs.list(extra_query={"metadata": "null"})
    assert [job.id for job in bare] == [plain.id]
    assert [job.id for job in client.fine_tuning.jobs.list()] == [other.id, plain.id]
    for job in (plain, other):
        client.fine_tuning.jobs.cancel(job.id)
