"""The real app behind uvicorn on a free port, and clients of tenants of their own."""

import json
import socket
import threading
import uuid

import httpx2
import openai
import pytest
import uvicorn

from manylora.api.app import create_app


class _Server(uvicorn.Server):
    """Says when it listens, so that nobody has to poll."""

    def __init__(self, config):
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets=None):
        await super().startup(sockets=sockets)
        self.listening.set()


@pytest.fixture
def serve():
    """serve(settings) -> the address of an API with these settings."""
    running = []

    def start(settings):
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        server = _Server(uvicorn.Config(create_app(settings), log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((server, thread))
        assert server.listening.wait(30)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def api(serve, service):
    """The address of the API over the test's service."""
    return serve(service.settings)


@pytest.fixture
def http(service, api):
    """http() -> a plain HTTP client with a key of a new tenant."""
    opened = []

    def make(scopes=("tenant",), base=api):
        _, key = service.tenant(f"t-{uuid.uuid4().hex[:8]}", scopes)
        headers = {"Authorization": f"Bearer {key}"}
        opened.append(httpx2.Client(base_url=base, headers=headers, timeout=30))
        return opened[-1]

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def connect(service, api):
    """connect() -> an unchanged openai client of a new tenant."""

    def make(**options):
        _, key = service.tenant(f"t-{uuid.uuid4().hex[:8]}", ("tenant",))
        return openai.OpenAI(base_url=f"{api}/v1", api_key=key, **{"max_retries": 0} | options)

    return make


@pytest.fixture
def dataset():
    """dataset(client) -> the id of a file just uploaded with a plain HTTP client."""

    def upload(client, body=b'{"prompt": "a", "completion": " b c"}\n', name="train.jsonl"):
        answer = client.post(
            "/v1/files", data={"purpose": "fine-tune"}, files={"file": (name, body)}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    return upload


def problem(answer, status, code):
    """The error of an answer, once its shape, status and code are as they should be."""
    assert answer.status_code == status, answer.text
    error = json.loads(answer.content)["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert error["code"] == code, error
    assert error["message"]
    assert answer.headers["x-request-id"]
    return error
