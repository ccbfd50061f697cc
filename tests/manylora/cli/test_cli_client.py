"""The client against a real server on loopback: errors, outages, fetch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from manylora import errors
from manylora import fetch as module
from manylora.client import Client

CONFIG = b'{"r": 8}'
WEIGHTS = b"weights" * 1000


class FakeClock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, event: Event, seconds: float) -> bool:
        self.now += seconds
        return event.is_set()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def client(service: Any) -> Client:
    return Client(service.url, "secret", clock=FakeClock())


def publish(
    service: Any, *, weights: bytes = WEIGHTS, config: bytes = CONFIG, **changes: Any
) -> bytes:
    """Let `service` offer an adapter whose manifest promises WEIGHTS; return the manifest."""
    contents = {"adapter_config.json": config, "adapter_model.safetensors": WEIGHTS}
    files = [{"name": n, "sha256": _sha(c), "bytes": len(c)} for n, c in contents.items()]
    manifest = json.dumps({"files": files}).encode()
    store = {**contents, "adapter_model.safetensors": weights, "manifest.json": manifest}
    for name, content in store.items():
        service.answers["GET", f"/store/{name}"] = (200, content)
    card = {
        "name": "ft:tiny:acme:support:abcd1234",
        "job_id": "ftjob-1",
        "base": "tiny",
        "base_fingerprint": "f" * 64,
        "adapter_uri": "s3://bucket/prefix",
        "manifest_sha256": _sha(manifest),
        "bytes": len(WEIGHTS) + len(CONFIG),
        "created_at": 1,
        "files": [{**f, "url": f"{service.url}/store/{f['name']}?sig=x"} for f in files],
        "manifest": {"url": f"{service.url}/store/manifest.json", "sha256": _sha(manifest)},
    }
    service.answers["GET", "/v1/manylora/adapters/support"] = (
        200,
        json.dumps(card | changes).encode(),
    )
    return manifest


@pytest.mark.parametrize(
    ("config", "said", "not_said"),
    [
        (b'{"r": 8, "use_dora": true}', ["PeftModel", "vLLM refuses DoRA"], "vllm serve"),
        (b'{"r": 8, "use_qalora": true}', ["load_adapter(model"], "PeftModel"),
    ],
)
def test_the_readme_says_who_loads_a_variant(
    config: bytes, said: list[str], not_said: str, service: Any, client: Client, tmp_path: Path
) -> None:
    publish(service, config=config)
    client.fetch("support", tmp_path / "x")
    readme = (tmp_path / "x" / "README.md").read_text()
    assert all(words in readme for words in said)
    assert not_said not in readme


def test_fetch_makes_a_whole_folder(service: Any, client: Client, tmp_path: Path) -> None:
    publish(service)
    out = tmp_path / "deep" / "support"
    got = client.fetch("support", out)
    assert (out / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert sorted(p.name for p in out.iterdir()) == sorted(got["fetched"])
    readme = (out / "README.md").read_text()
    assert "PeftModel" in readme
    assert "--max-lora-rank 8" in readme
    assert "support=$PWD" in readme
    assert list(out.parent.iterdir()) == [out]


def test_the_key_goes_to_the_api_only(service: Any, client: Client, tmp_path: Path) -> None:
    publish(service)
    client.fetch("support", tmp_path / "out")
    for _method, path, headers, _body in service.asked:
        assert ("Authorization" in headers) == path.startswith("/v1/"), path


def test_fetch_into_a_folder_in_use_replaces_only_its_files(
    service: Any, client: Client, tmp_path: Path
) -> None:
    publish(service)
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "adapter_config.json").write_text("old")
    client.fetch("support", out)
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "adapter_config.json").read_bytes() == CONFIG
    assert not [p for p in (*out.iterdir(), *tmp_path.iterdir()) if p.name[0] == "."]


@pytest.mark.parametrize("kind", ["empty", "link", "here"])
def test_fetch_into_an_empty_folder(
    service: Any, client: Client, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(service)
    out = tmp_path / "out"
    out.mkdir()
    target = out
    if kind == "link":
        target = tmp_path / "link"
        target.symlink_to(out)
    elif kind == "here":
        monkeypatch.chdir(out)
        target = Path()
    client.fetch("support", target)
    assert (out / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert not [p for p in (*out.iterdir(), *tmp_path.iterdir()) if p.name[0] == "."]
    assert out.stat().st_mode & 0o700 == 0o700


@pytest.mark.parametrize("weights", [WEIGHTS[::-1], WEIGHTS[:-1], WEIGHTS + b"x", b""])
def test_wrong_bytes_leave_nothing(
    service: Any, client: Client, tmp_path: Path, weights: bytes
) -> None:
    publish(service, weights=weights)
    with pytest.raises(errors.IntegrityError, match=r"adapter_model\.safetensors"):
        client.fetch("support", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_is_not_the_apis_leaves_nothing(
    service: Any, client: Client, tmp_path: Path
) -> None:
    publish(service, manifest_sha256="0" * 64)
    with pytest.raises(errors.IntegrityError, match="two digests"):
        client.fetch("support", tmp_path / "out")
    publish(service)
    service.answers["GET", "/store/manifest.json"] = (200, b'{"files": []}')
    with pytest.raises(errors.IntegrityError, match=r"manifest\.json"):
        client.fetch("support", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", ".hidden"])
def test_a_manifest_cannot_write_elsewhere(
    service: Any, client: Client, tmp_path: Path, name: str
) -> None:
    publish(service)
    manifest = json.dumps({"files": [{"name": name, "sha256": "0", "bytes": 1}]}).encode()
    service.answers["GET", "/store/manifest.json"] = (200, manifest)
    told = {"url": f"{service.url}/store/manifest.json", "sha256": _sha(manifest)}
    publish_again = {"manifest": told, "manifest_sha256": _sha(manifest)}
    publish(service, **publish_again)
    service.answers["GET", "/store/manifest.json"] = (200, manifest)
    with pytest.raises(errors.IntegrityError, match="not a plain file name"):
        client.fetch("support", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(
    service: Any, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    publish(service)
    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(errors.ManyloraError, match="no space left"):
        client.fetch("support", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_url_that_ran_out_is_asked_for_again(
    service: Any, client: Client, tmp_path: Path
) -> None:
    publish(service)
    turns = iter([(403, b"expired"), (200, WEIGHTS)])
    service.answers["GET", "/store/adapter_model.safetensors"] = lambda _body: next(turns)
    client.fetch("support", tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "model_not_found", errors.UnknownBaseError),
        (400, "invalid_training_file", errors.DatasetError),
        (400, "invalid_state", errors.StateError),
        (400, "something_new", errors.UsageError),
        (401, "invalid_api_key", errors.AuthError),
        (403, None, errors.AuthError),
        (404, "not_found", errors.NotFoundError),
        (429, "quota_exceeded", errors.QuotaError),
        (503, "unavailable", errors.UnavailableError),
    ],
)
def test_http_errors_are_ours(
    service: Any, client: Client, status: int, code: str | None, kind: type[Exception]
) -> None:
    body = {"error": {"message": "told so", "type": "t", "param": "p", "code": code}}
    service.answers["GET", "/v1/manylora/status"] = (status, json.dumps(body).encode())
    with pytest.raises(errors.ManyloraError, match="told so") as caught:
        client.status()
    assert type(caught.value) is kind
    assert caught.value.param == "p"
    assert caught.value.error_code == (code or kind.code)


@pytest.mark.parametrize(("status", "body"), [(500, b"<html>"), (502, b""), (200, b"<html>")])
def test_an_answer_of_something_else_is_unavailable(
    service: Any, client: Client, status: int, body: bytes
) -> None:
    service.answers["GET", "/v1/manylora/status"] = (status, body)
    with pytest.raises(errors.UnavailableError):
        client.status()


def test_an_outage_is_ridden_out_for_so_long() -> None:
    clock, told, calls = FakeClock(), [], []
    client = Client("http://127.0.0.1:9", "k", clock=clock)

    def back_after(seconds: float) -> str:
        calls.append(clock.now)
        if clock.now < seconds:
            raise errors.UnavailableError("away")
        return "back"

    assert client.ride_out(600, lambda: back_after(590), told.append) == "back"
    assert len(told) == 1
    assert len(calls) < 100
    clock.now = 0.0
    with pytest.raises(errors.UnavailableError):
        client.ride_out(600, lambda: back_after(10_000))
    assert clock.now == 600


def test_upload_survives_a_short_outage(service: Any, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"{}\n")
    turns = iter([(503, b"{}"), (200, b'{"id":"file-1"}')])
    service.answers["POST", "/v1/files"] = lambda _body: next(turns)
    assert client.upload(path)["id"] == "file-1"
    assert b"d.jsonl" in service.asked[-1][3]
    assert b'name="purpose"' in service.asked[-1][3]


def test_create_job_sends_the_same_key_again(service: Any, client: Client) -> None:
    turns = iter([(503, b"{}"), (200, b'{"id":"ftjob-1"}')])
    service.answers["POST", "/v1/fine_tuning/jobs"] = lambda _body: next(turns)
    assert client.create_job({"model": "m"}, "key-1")["id"] == "ftjob-1"
    assert [asked[2]["Idempotency-Key"] for asked in service.asked] == ["key-1", "key-1"]


def test_add_base_sends_what_is_asked_for(service: Any, client: Client, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    upload = {
        "name": "model.safetensors",
        "url": f"{service.url}/put/1?sig=x",
        "headers": {"x-amz-checksum-sha256": "abc"},
    }
    answer = {"base": {"name": "tiny"}, "uploads": [upload]}
    service.answers["POST", "/v1/manylora/bases"] = (200, json.dumps(answer).encode())
    service.answers["PUT", "/put/1"] = (200, b"")
    service.answers["POST", "/v1/manylora/bases/tiny/complete"] = (200, b'{"name":"tiny"}')
    seen: list[tuple[str, int, int]] = []
    client.add_base({"name": "tiny", "folder": "x"}, tmp_path, lambda *at: seen.append(at))
    card, put, _complete = service.asked
    assert json.loads(card[3]) == {"name": "tiny"}
    assert put[3] == WEIGHTS
    assert put[2]["x-amz-checksum-sha256"] == "abc"
    assert "Transfer-Encoding" not in put[2]
    assert "Authorization" not in put[2]
    assert seen[-1] == ("model.safetensors", len(WEIGHTS), len(WEIGHTS))


def test_pages_are_followed(service: Any, client: Client) -> None:
    turns = iter(
        [
            (200, b'{"data":[{"id":"a"},{"id":"b"}],"has_more":true}'),
            (200, b'{"data":[{"id":"c"}],"has_more":false}'),
        ]
    )
    service.answers["GET", "/v1/fine_tuning/jobs"] = lambda _body: next(turns)
    assert [job["id"] for job in client.jobs(limit=2)] == ["a", "b", "c"]
    assert "after=b" in service.asked[1][1]
