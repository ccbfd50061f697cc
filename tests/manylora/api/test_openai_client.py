"""The unchanged `openai` client against the real API, PostgreSQL, and S3."""

import socket
import threading
import time
import uuid

import httpx2
import openai
import pytest
import uvicorn

from manylora.api.app import create_app
from scheduler.loop import Scheduler

LINES = b'{"prompt": "a", "completion": " b c"}\n' * 3


@pytest.fixture
def api(service, registered):
    """The API's address, served from a thread."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(service.settings), log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def connect(service, api):
    """connect() -> an openai client of a new tenant of its own."""

    def make(scopes=("tenant",)):
        _, key = service.tenant(f"t-{uuid.uuid4().hex[:8]}", scopes)
        return openai.OpenAI(
            base_url=f"{api}/v1", api_key=key, max_retries=0, _strict_response_validation=True
        )

    return make


def test_upload_create_list_events_cancel(connect, service):
    client = connect()
    file = client.files.create(file=("train.jsonl", LINES), purpose="fine-tune")
    assert (file.bytes, file.status, file.filename) == (len(LINES), "processed", "train.jsonl")
    assert client.files.content(file.id).read() == LINES
    made = [
        client.fine_tuning.jobs.create(
            model="tiny",
            training_file=file.id,
            suffix=f"s{i}",
            seed=i,
            metadata={"n": str(i)},
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 2, "lora_r": 4}},
            },
        )
        for i in range(3)
    ]
    assert made[0].status == "validating_files"
    assert made[0].hyperparameters.n_epochs == 2
    listed = [job.id for job in client.fine_tuning.jobs.list(limit=2)]
    assert listed == [job.id for job in reversed(made)]
    (only,) = client.fine_tuning.jobs.list(metadata={"n": "1"})
    assert only.id == made[1].id
    events = list(client.fine_tuning.jobs.list_events(made[0].id))
    assert events[-1].message == f"Created fine-tuning job: {made[0].id}"
    with pytest.raises(openai.BadRequestError, match="needed by"):
        client.files.delete(file.id)
    assert client.fine_tuning.jobs.cancel(made[0].id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="cancelled already") as refused:
        client.fine_tuning.jobs.cancel(made[0].id)
    assert refused.value.code == "invalid_job_state"
    assert client.fine_tuning.jobs.retrieve(made[0].id).status == "cancelled"
    # The client's own literals lack `paused`: this one checks them, ordinary ones do not.
    held = client.fine_tuning.jobs.with_raw_response.pause(made[1].id)
    assert held.http_response.json()["status"] == "paused"
    assert client.fine_tuning.jobs.resume(made[1].id).status == "validating_files"
    with pytest.raises(openai.BadRequestError, match="cancelled already and cannot be paused"):
        client.fine_tuning.jobs.pause(made[0].id)
    for job in made[1:]:
        client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"model": "gemma-9"}, "model", "registered: tiny"),
        ({"hyperparameters": {"lora_r": 0}}, "hyperparameters.lora_r", "lora_r"),
        ({"hyperparameters": {"lora_r": 17}}, "hyperparameters.lora_r", "larger than the layer"),
        ({"hyperparameters": {"n_epochs": 99}}, "hyperparameters.n_epochs", "n_epochs"),
        ({"hyperparameters": {"nope": 1}}, "hyperparameters", "nope"),
        (
            {"hyperparameters": {"lora_r": 4, "target_modules": ["query"]}},
            "hyperparameters.target_modules",
            "layers of this base: .*q_proj",
        ),
        ({"training_file": "file-none"}, "file_id", "no file file-none"),
        ({"method": {"type": "reinforcement"}}, "method.type", "not supported"),
        ({"suffix": "../x"}, "suffix", "suffix"),
    ],
)
def test_what_cannot_be_is_refused_with_its_parameter(connect, change, param, words):
    client = connect()
    file = client.files.create(file=("train.jsonl", LINES), purpose="fine-tune")
    body = {"model": "tiny", "training_file": file.id, "hyperparameters": {"lora_r": 4}} | change
    with pytest.raises(openai.APIStatusError, match=words) as refused:
        client.fine_tuning.jobs.create(**body)
    assert refused.value.status_code == (404 if param == "file_id" else 400)
    assert refused.value.param == param
    assert list(client.fine_tuning.jobs.list()) == []


def test_another_tenants_things_do_not_exist(connect, service):
    mine, theirs = connect(), connect()
    file = mine.files.create(file=("train.jsonl", LINES), purpose="fine-tune")
    job = mine.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, hyperparameters={"lora_r": 4}
    )
    attempts = [
        lambda: theirs.files.retrieve(file.id),
        lambda: theirs.files.content(file.id),
        lambda: theirs.files.delete(file.id),
        lambda: theirs.fine_tuning.jobs.retrieve(job.id),
        lambda: theirs.fine_tuning.jobs.cancel(job.id),
        lambda: theirs.fine_tuning.jobs.pause(job.id),
        lambda: theirs.fine_tuning.jobs.resume(job.id),
        lambda: theirs.fine_tuning.jobs.list_events(job.id),
        lambda: theirs.fine_tuning.jobs.create(
            model="tiny", training_file=file.id, hyperparameters={"lora_r": 4}
        ),
        lambda: theirs.get(f"/manylora/adapters/{job.id}", cast_to=object),
        lambda: theirs.get(f"/manylora/jobs/{job.id}/metrics", cast_to=object),
    ]
    for attempt in attempts:
        with pytest.raises(openai.NotFoundError):
            attempt()
    assert list(theirs.files.list()) == []
    mine.fine_tuning.jobs.cancel(job.id)


def test_keys(api, connect):
    for key in ("wrong", "ml_000000000000_" + "x" * 43):
        with pytest.raises(openai.AuthenticationError) as refused:
            openai.OpenAI(base_url=f"{api}/v1", api_key=key, max_retries=0).models.list()
        assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.PermissionDeniedError):
        connect().delete("/manylora/bases/tiny", cast_to=object)


def test_models_health_and_unknown_urls(api, connect, service):
    client = connect()
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "operator"
    Scheduler(service.settings).tick()
    ready = httpx2.get(f"{api}/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    missing = httpx2.get(f"{api}/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_url")
    assert missing.headers["x-request-id"].startswith("req_")


def test_an_idempotency_key_makes_one_job(connect):
    client = connect()
    file = client.files.create(file=("train.jsonl", LINES), purpose="fine-tune")
    made = {
        client.fine_tuning.jobs.create(
            model="tiny",
            training_file=file.id,
            hyperparameters={"lora_r": 4},
            extra_headers={"Idempotency-Key": "k"},
        ).id
        for _ in range(3)
    }
    assert len(made) == 1
    client.fine_tuning.jobs.cancel(made.pop())


def test_the_scheduler_refuses_bad_lines_with_their_numbers(connect, service):
    client = connect()
    good = b'{"prompt": "a", "completion": "b"}\n'
    body = good * 9_000 + b'{"prompt": "a"}\n' + good * 1_000
    file = client.files.create(file=("train.jsonl", body), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, hyperparameters={"lora_r": 4}
    )
    scheduler = Scheduler(service.settings)
    while scheduler.take_in():
        pass
    seen = client.fine_tuning.jobs.retrieve(job.id)
    assert seen.status == "failed"
    assert seen.error.code == "invalid_training_file"
    assert "line 9001: $.completion" in seen.error.message
