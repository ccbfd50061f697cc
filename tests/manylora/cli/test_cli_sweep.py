"""`sweep` against a service of a few lines: jobs that make steps whenever they are looked at."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from manylora.cli import main, sweeping

LINE = '{"prompt": "a", "completion": " b"}\n'
JOBS = "/v1/fine_tuning/jobs"


class Jobs:
    """What the service has: two slots; a job's validation loss is its rate over its step."""

    def __init__(self, service: Any, pace: list[int]) -> None:
        self.made: dict[str, dict[str, Any]] = {}
        self.verbs: list[tuple[str, str]] = []
        self._service, self._pace = service, pace
        service.answers["POST", JOBS] = self.create
        service.answers["POST", "/v1/files"] = (200, b'{"id": "file-1"}')
        service.answers["GET", "/v1/models/tiny"] = (200, b"{}")

    def create(self, body: bytes) -> tuple[int, bytes]:
        asked = json.loads(body)
        key = self._service.asked[-1][2]["Idempotency-Key"]
        if key not in self.made:
            number = len(self.made)
            job = {"id": f"ftjob-{number}", "status": "queued", "step": 0, "asked": asked}
            self.made[key] = job
            path = f"{JOBS}/{job['id']}"
            self._service.answers["GET", path] = lambda _b, job=job: self.look(job)
            self._service.answers["GET", f"/v1/manylora/jobs/{job['id']}/metrics"] = (
                lambda _b, job=job: self.metrics(job)
            )
            for verb in ("cancel", "pause", "resume"):
                self._service.answers["POST", f"{path}/{verb}"] = lambda _b, job=job, verb=verb: (
                    self.do(job, verb)
                )
        return self.show(self.made[key])

    def do(self, job: dict[str, Any], verb: str) -> tuple[int, bytes]:
        self.verbs.append((verb, job["id"]))
        job["status"] = {"cancel": "cancelled", "pause": "paused", "resume": "queued"}[verb]
        return self.show(job)

    def look(self, job: dict[str, Any]) -> tuple[int, bytes]:
        at_work = [one for one in self.made.values() if one["status"] == "running"]
        if job["status"] == "queued" and len(at_work) < 2:
            job["status"] = "running"
        if job["status"] == "running":
            number = int(job["id"].rpartition("-")[2]) % 4
            job["step"] = min(8, job["step"] + self._pace[number])
            job["status"] = "succeeded" if job["step"] == 8 else "running"
        return self.show(job)

    def metrics(self, job: dict[str, Any]) -> tuple[int, bytes]:
        after = int(self._service.asked[-1][1].rpartition("after_step=")[2])
        hyper = job["asked"]["method"]["supervised"]["hyperparameters"]
        points = [
            {"step": s, "train_loss": 1.0}
            | ({} if s % hyper["eval_every"] else {"valid_loss": hyper["learning_rate"] / s})
            for s in range(after + 1, job["step"] + 1)
        ]
        return 200, json.dumps({"data": points}).encode()

    def show(self, job: dict[str, Any]) -> tuple[int, bytes]:
        return 200, json.dumps({k: job[k] for k in ("id", "status")}).encode()


@pytest.fixture
def manylora(
    service: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Any:
    monkeypatch.setenv("MANYLORA_API_URL", service.url)
    monkeypatch.setenv("MANYLORA_API_KEY", "k")
    monkeypatch.setenv("MANYLORA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweeping.SystemClock, "wait", lambda _self, _event, _seconds: False)
    (tmp_path / "d.jsonl").write_text(LINE * 8)
    (tmp_path / "v.jsonl").write_text(LINE * 2)

    def call(*more: str) -> tuple[int, str, str]:
        words = ["sweep", "d.jsonl", "--base", "tiny", "--validation", "v.jsonl", "--epochs", "1"]
        code = main.run([*words, "--batch-size", "1", *more])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


OVER = ("--over", "learning_rate=0.4,0.1,0.3,0.2")


def test_losers_are_stopped_and_those_ahead_are_held(service: Any, manylora: Any) -> None:
    jobs = Jobs(service, pace=[1, 1, 1, 1])
    code, out, err = manylora(*OVER, "--json", "-o", "out")
    assert code == 0, err
    told = json.loads(out)
    assert (told["rungs"], told["entering"]) == ([2, 4, 8], [4, 2, 1])
    assert told["pick"] == {"trial": 1, "job_id": "ftjob-1", "learning_rate": 0.1}
    fates = [trial["fate"] for trial in told["trials"]]
    assert fates == ["stopped at step 2", "picked", "stopped at step 2", "stopped at step 4"]
    assert told["steps_spent"] < told["steps_full_grid"]
    # Two slots, four trials: the first two made room for the others.
    assert {("pause", "ftjob-0"), ("pause", "ftjob-1")} <= set(jobs.verbs)
    assert ("resume", "ftjob-1") in jobs.verbs
    assert {job for verb, job in jobs.verbs if verb == "cancel"} == {
        "ftjob-0", "ftjob-2", "ftjob-3",
    }  # fmt: skip
    asked = [job["asked"] for job in jobs.made.values()]
    assert {one["metadata"]["sweep"] for one in asked} == {told["sweep"]}
    assert {one["seed"] for one in asked} == {0}
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "report.md", "sweep.png", "trials.csv",
    ]  # fmt: skip


def test_the_same_call_again_makes_no_job_and_comes_to_the_same(
    service: Any, manylora: Any
) -> None:
    jobs = Jobs(service, pace=[1, 1, 1, 1])
    first = json.loads(manylora(*OVER, "--json")[1])
    made = len(jobs.made)
    assert json.loads(manylora(*OVER, "--json")[1]) == first
    assert len(jobs.made) == made == 4
    manylora(*OVER, "--seed", "1", "--json")
    assert len(jobs.made) == 8


def test_an_interrupted_sweep_goes_on_where_it_was(
    service: Any, manylora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(service, pace=[1, 1, 1, 1])
    turns = iter(range(3))

    def wait(*_args: Any) -> bool:
        if next(turns, None) is None:
            raise KeyboardInterrupt
        return False

    with monkeypatch.context() as patch:
        patch.setattr(sweeping.SystemClock, "wait", wait)
        code, out, err = manylora(*OVER)
        assert (code, out) == (130, "")
        assert "its jobs" not in err
        assert "the jobs of sweep" in err
        assert not [verb for verb, _ in jobs.verbs if verb == "cancel"]
    told = json.loads(manylora(*OVER, "--json")[1])
    assert told["pick"]["job_id"] == "ftjob-1"
    assert len(jobs.made) == 4
    with monkeypatch.context() as patch:
        patch.setattr(sweeping.SystemClock, "wait", wait)
        code, _, err = manylora(*OVER, "--seed", "2", "--cancel-on-exit")
        assert code == 130
        assert "are cancelled" in err
    states = [job["status"] for job in list(jobs.made.values())[4:]]
    assert set(states) <= {"cancelled", "succeeded"}


def test_a_budget_that_is_too_small_and_one_that_runs_out(service: Any, manylora: Any) -> None:
    jobs = Jobs(service, pace=[2, 2, 2, 2])
    code, _, err = manylora(*OVER, "--budget", "9")
    assert code == 2
    assert re.search(r"need at least 16 steps, the budget is 9", err)
    assert not jobs.made
    jobs._pace = [6, 6, 6, 6]  # faster than anybody can look
    told = json.loads(manylora(*OVER, "--budget", "17", "--json")[1])
    assert told["pick"] is not None
    assert all(job["status"] in ("cancelled", "succeeded") for job in jobs.made.values())


def test_where_a_trial_is_refused_none_is_left_running(service: Any, manylora: Any) -> None:
    jobs = Jobs(service, pace=[1, 1, 1, 1])
    create = jobs.create

    def refuse(body: bytes) -> tuple[int, bytes]:
        if len(jobs.made) == 2:
            return 400, b'{"error": {"message": "no", "code": "invalid_hyperparameters"}}'
        return create(body)

    service.answers["POST", JOBS] = refuse
    assert manylora(*OVER)[0] == 2
    assert [job["status"] for job in jobs.made.values()] == ["cancelled"] * 2
