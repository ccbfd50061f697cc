"""Commands against a service that answers by script: what is printed, where, and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manylora.cli import follow, main
from manylora.cli.commands import logs, wait

GOOD = '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n'
BAD = '{"messages":[{"role":"user","content":"a"},{"role":"assistent","content":"b"}]}\n'
JOBS = "/v1/fine_tuning/jobs"


def job(status: str, **more: Any) -> dict[str, Any]:
    return {
        "id": "ftjob-1",
        "object": "fine_tuning.job",
        "status": status,
        "model": "tiny",
        "created_at": 1_700_000_000,
        "fine_tuned_model": "ft:tiny:acme:support:abcd1234" if status == "succeeded" else None,
        "error": {"code": "oom", "message": "out of memory"} if status == "failed" else None,
        "user_provided_suffix": "support",
        "x": {"step": 3, "total_steps": 9, "cost": 0.0041, "currency": "USD", "device_seconds": 31},
    } | more


def event(number: int, message: str) -> dict[str, Any]:
    at = 1_700_000_000 + number
    return {"id": f"ftevent-{number}", "created_at": at, "level": "info", "message": message}


def listed(items: list[dict[str, Any]]) -> tuple[int, bytes]:
    return 200, json.dumps({"object": "list", "data": items, "has_more": False}).encode()


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
    points = [{"step": 1, "train_loss": 2.31}, {"step": 3, "train_loss": 1.12, "valid_loss": 1.3}]
    service.answers["GET", "/v1/manylora/jobs/ftjob-1/metrics"] = listed(points)
    service.answers["GET", f"{JOBS}/ftjob-1/events"] = listed(
        [event(2, "second"), event(1, "first")]
    )

    def call(*args: str) -> tuple[int, str, str]:
        code = main.run(args)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def ends(service: Any, status: str) -> None:
    """Let the job run once and then have ended."""
    turns = iter([job("running")])
    service.answers["GET", f"{JOBS}/ftjob-1"] = lambda _body: (
        200,
        json.dumps(next(turns, job(status))).encode(),
    )


class Passed:
    """An event whose waits are over at once; threads keep their real ones."""

    def wait(self, _seconds: float) -> bool:
        return True


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow.SystemClock, "wait", lambda _self, _event, _seconds: False)
    for command in (logs, wait):
        monkeypatch.setattr(command, "Event", Passed)


@pytest.mark.parametrize("fate", ["succeeded", "failed", "cancelled"])
@pytest.mark.parametrize("name", ["watch", "wait"])
def test_the_exit_code_is_the_jobs_fate(service: Any, manylora: Any, name: str, fate: str) -> None:
    ends(service, fate)
    code, out, err = manylora(name, "ftjob-1")
    assert code == follow.FATES[fate]
    if fate == "failed":
        assert "out of memory" in out + err
    if name == "watch" and fate == "succeeded":
        assert out == "ft:tiny:acme:support:abcd1234\n"
        assert "loss 2.31 → 1.12" in err
        assert err.index("first") < err.index("second")
    ends(service, fate)
    code, out, err = manylora(name, "ftjob-1", "--json")
    assert code == follow.FATES[fate]
    one = json.loads(out)
    assert (one if name == "watch" else one["data"][0])["status"] == fate


def test_wait_exits_with_the_worst(service: Any, manylora: Any) -> None:
    for name, status in (("a", "succeeded"), ("b", "cancelled"), ("c", "failed")):
        service.answers["GET", f"{JOBS}/{name}"] = (200, json.dumps(job(status, id=name)).encode())
    assert manylora("wait", "a", "b")[0] == 103
    assert manylora("wait", "a", "b", "c")[0] == 100
    assert manylora("wait", "a", "a")[0] == 0


def test_ctrl_c_detaches(service: Any, manylora: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_args: Any) -> bool:
        raise KeyboardInterrupt

    service.answers["GET", f"{JOBS}/ftjob-1"] = (200, json.dumps(job("running")).encode())
    monkeypatch.setattr(follow.SystemClock, "wait", interrupted)
    code, out, err = manylora("watch", "ftjob-1")
    assert (code, out) == (0, "")
    assert "detached; the job goes on. manylora watch ftjob-1" in err


def test_watch_survives_an_outage(service: Any, manylora: Any) -> None:
    turns = iter([(503, b"{}"), (503, b"{}"), (200, json.dumps(job("succeeded")).encode())])
    service.answers["GET", f"{JOBS}/ftjob-1"] = lambda _body: next(turns)
    code, _out, err = manylora("watch", "ftjob-1")
    assert code == 0
    assert err.count("trying again") == 1


def test_logs_are_oldest_first(service: Any, manylora: Any) -> None:
    code, out, _err = manylora("logs", "ftjob-1")
    assert code == 0
    assert [row.rsplit(None, 1)[1] for row in out.splitlines()] == ["first", "second"]
    ends(service, "succeeded")
    code, out, _err = manylora("logs", "-f", "--json", "ftjob-1")
    assert [json.loads(row)["message"] for row in out.splitlines()] == ["first", "second"]


def test_jobs_lists_and_filters(service: Any, manylora: Any) -> None:
    service.answers["GET", JOBS] = listed([job("running", id="a"), job("failed", id="b")])
    code, out, err = manylora("jobs")
    assert (code, err) == (0, "")
    assert [row.split()[0] for row in out.splitlines()] == ["job", "a", "b"]
    assert "3/9" in out
    _, out, _ = manylora("jobs", "--status", "failed", "--json")
    assert [item["id"] for item in json.loads(out)["data"]] == ["b"]


def test_show_and_cancel(service: Any, manylora: Any) -> None:
    service.answers["GET", f"{JOBS}/ftjob-1"] = (200, json.dumps(job("failed")).encode())
    code, out, _ = manylora("show", "ftjob-1")
    assert code == 0
    assert "out of memory" in out
    assert "31 s of a device, 0.0041 USD" in out
    service.answers["POST", f"{JOBS}/ftjob-1/cancel"] = (200, json.dumps(job("cancelled")).encode())
    code, out, err = manylora("cancel", "ftjob-1")
    assert (code, out) == (0, "")
    assert "cancelled" in err
    assert manylora("cancel", "nosuch")[0] == 1


def test_pause_and_resume(service: Any, manylora: Any) -> None:
    held = job("running")
    held["x"]["wish"] = "pause"
    service.answers["POST", f"{JOBS}/ftjob-1/pause"] = (200, json.dumps(held).encode())
    code, out, err = manylora("pause", "ftjob-1")
    assert (code, out) == (0, "")
    assert "pauses at its next step" in err
    service.answers["POST", f"{JOBS}/ftjob-1/resume"] = (200, json.dumps(job("queued")).encode())
    code, out, err = manylora("resume", "ftjob-1", "--json")
    assert (code, json.loads(out)["data"][0]["status"]) == (0, "queued")
    assert manylora("pause", "nosuch")[0] == 1


def test_adapters_and_bases(service: Any, manylora: Any) -> None:
    row = {"name": "ft:x", "job_id": "ftjob-1", "base": "tiny", "bytes": 3_800_000, "created_at": 1}
    service.answers["GET", "/v1/manylora/adapters"] = listed([row])
    assert "3.8 MB" in manylora("adapters")[1]
    service.answers["GET", "/v1/manylora/bases"] = listed([])
    code, out, err = manylora("base", "list")
    assert (code, out) == (0, "")
    assert "manylora base add" in err


# -- datasets -----------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pytest.importorskip("manylora.datasets.validate")
    (tmp_path / "bad.jsonl").write_text(GOOD + BAD)
    (tmp_path / "good.jsonl").write_text(GOOD)
    return tmp_path


def test_validate(data: Path, manylora: Any) -> None:
    assert manylora("validate", "good.jsonl")[0] == 0
    code, out, err = manylora("validate", "bad.jsonl")
    assert code == 3
    assert out.startswith("bad.jsonl: 1 of 2 lines cannot be used\n  line 2 ")
    assert "assistent" in out
    assert "--fix good.jsonl" in err
    code, out, _ = manylora("validate", "bad.jsonl", "--json")
    assert code == 3
    assert {p["line"] for p in json.loads(out)["problems"]} == {2}


def test_fix_writes_the_good_lines(data: Path, manylora: Any) -> None:
    assert manylora("validate", "bad.jsonl", "--fix", "fixed.jsonl")[0] == 3
    assert (data / "fixed.jsonl").read_text() == GOOD
    assert manylora("validate", "fixed.jsonl")[0] == 0
    assert manylora("validate", "bad.jsonl", "--fix", "bad.jsonl")[0] == 2
    assert (data / "bad.jsonl").read_text() == GOOD + BAD


def test_submit_sends_nothing_of_a_bad_dataset(data: Path, service: Any, manylora: Any) -> None:
    code, out, err = manylora("submit", "bad.jsonl", "--base", "tiny")
    assert (code, out) == (3, "")
    assert "line 2" in err
    assert service.asked == []


def test_submit_detached_prints_the_id(data: Path, service: Any, manylora: Any) -> None:
    service.answers["GET", "/v1/models/tiny"] = (200, b'{"id":"tiny"}')
    service.answers["POST", "/v1/files"] = (200, b'{"id":"file-1"}')
    service.answers["POST", JOBS] = (200, json.dumps(job("validating_files")).encode())
    words = "submit good.jsonl --base tiny --rank 8 --epochs 2 --target-modules q_proj,v_proj"
    words += " --qalora-group 8 --learnable-scaling --loraplus-ratio 4"
    words += " --longlora-group 256 --train-norms --train-embeddings"
    code, out, _ = manylora(*words.split(), "--metadata", "team=blue", "-d")
    assert (code, out) == (0, "ftjob-1\n")
    sent = json.loads(service.asked[-1][3])
    assert sent["training_file"] == "file-1"
    assert sent["metadata"] == {"team": "blue"}
    assert sent["method"]["supervised"]["hyperparameters"] == {
        "n_epochs": 2,
        "lora_r": 8,
        "learnable_scaling": True,
        "use_qalora": True,
        "qalora_group_size": 8,
        "loraplus_lr_ratio": 4.0,
        "longlora_group_size": 256,
        "train_norms": True,
        "train_embeddings": True,
        "target_modules": ["q_proj", "v_proj"],
    }
    ends(service, "failed")
    assert manylora(*words.split())[0] == 100
