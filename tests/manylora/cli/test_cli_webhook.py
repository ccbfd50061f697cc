"""`manylora webhook` against a service that answers by script."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manylora.cli import main

HOOKS = "/v1/manylora/webhooks"
ONE = {
    "id": "we_1",
    "object": "webhook",
    "url": "https://a.example/hook",
    "events": ["fine_tuning.job.failed", "fine_tuning.job.succeeded"],
    "created_at": 1_700_000_000,
}
SENT = {
    "id": "evt_1",
    "type": "fine_tuning.job.failed",
    "job_id": "ftjob-1",
    "state": "pending",
    "attempts": 3,
    "last_status": 500,
    "last_error": "it answered HTTP 500",
    "created_at": 1_700_000_000,
}


@pytest.fixture
def manylora(
    service: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Callable[..., tuple[int, str, str]]:
    """Run a command line here; returns exit code, stdout, stderr."""
    monkeypatch.setenv("MANYLORA_API_URL", service.url)
    monkeypatch.setenv("MANYLORA_API_KEY", "k")
    monkeypatch.setenv("MANYLORA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        code = main.run(["webhook", *words])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def answer(value: Any) -> tuple[int, bytes]:
    return 200, json.dumps(value).encode()


def test_the_secret_is_the_one_line_on_stdout(service: Any, manylora: Any) -> None:
    service.answers["POST", HOOKS] = answer(ONE | {"secret": "whsec_abc"})
    code, out, err = manylora("add", ONE["url"], "--on", "failed", "--on", "succeeded")
    assert (code, out) == (0, "whsec_abc\n")
    assert "we_1 is told of failed, succeeded" in err
    sent = json.loads(service.asked[-1][3])
    assert sent["url"] == ONE["url"]
    assert sorted(sent["events"]) == ONE["events"]
    code, out, _ = manylora("add", ONE["url"], "--json")
    assert json.loads(service.asked[-1][3])["events"] is None
    assert json.loads(out)["secret"] == "whsec_abc"


def test_a_refusal_is_told_with_what_to_do(service: Any, manylora: Any) -> None:
    error = {"message": "not public (ask)", "code": "invalid_request", "hint": "ask"}
    service.answers["POST", HOOKS] = 400, json.dumps({"error": error}).encode()
    code, out, err = manylora("add", "http://10.0.0.1/")
    assert (code, out) == (2, "")
    assert "not public" in err
    assert "ask" in err
    assert manylora("add", "http://a/", "--on", "paused")[0] == 2


def test_lists_and_removal(service: Any, manylora: Any) -> None:
    service.answers["GET", HOOKS] = answer({"data": [ONE], "has_more": False})
    service.answers["DELETE", f"{HOOKS}/we_1"] = answer({"id": "we_1", "deleted": True})
    pages = answer({"data": [SENT, SENT | {"id": "evt_0"}], "has_more": False})
    service.answers["GET", f"{HOOKS}/we_1/deliveries"] = pages
    code, out, _ = manylora("list")
    assert code == 0
    assert "we_1" in out
    assert "failed, succeeded" in out
    code, out, _ = manylora("deliveries", "we_1", "-l", "1")
    assert "evt_1" in out
    assert "it answered HTTP 500" in out
    assert "evt_0" not in out
    assert json.loads(manylora("deliveries", "we_1", "--json")[1])["data"][1]["id"] == "evt_0"
    assert manylora("remove", "we_1")[0] == 0
    service.answers["GET", HOOKS] = answer({"data": [], "has_more": False})
    code, out, err = manylora("list")
    assert (code, out) == (0, "")
    assert "no webhooks" in err
    assert manylora("remove", "we_2")[0] == 1
