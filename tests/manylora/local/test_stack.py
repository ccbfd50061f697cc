"""`up -d`, `status` and `down` with the whole service, and a supervisor that does not start."""

import os
import signal
import stat
import sys
import urllib.error
import urllib.request

import pytest

from manylora.errors import StackError
from manylora.local import commands, notes
from manylora.local.ports import free_ports

from .conftest import await_true

NAMES = ["seaweed", "postgres", "valkey", "api", "scheduler", "worker"]


@pytest.fixture(scope="module")
def home(open_home):
    """A home whose stack is up."""
    told = []
    port = str(free_ports(1)[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYLORA_API_PORT", port)
        state = commands.up(home=open_home, slots=2, detach=True, progress=told.append)
    assert state["state"] == "up"
    assert any(line.startswith("up at http://127.0.0.1:") for line in told)
    yield open_home
    if notes.read(open_home):
        commands.down(home=open_home)


def env_of(path):
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def get(url, key=None):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return answer.status


def test_status_names_every_process(home):
    found = commands.status(home=home)
    assert [one["name"] for one in found["processes"]][: len(NAMES)] == NAMES
    assert all(notes.is_alive(one["pid"]) for one in found["processes"])
    assert {"supervisor_pid", "started_at", "ports", "urls"} <= set(found)


def test_the_env_files_are_closed_and_their_key_opens_the_api(home):
    for name in ("credentials.json", "service.env", "client.env"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600, name
    client = env_of(home / "client.env")
    assert client["OPENAI_BASE_URL"] == client["MANYLORA_API_URL"] + "/v1"
    assert client["OPENAI_API_KEY"] == client["MANYLORA_API_KEY"]
    jobs = client["OPENAI_BASE_URL"] + "/fine_tuning/jobs"
    assert get(jobs, client["OPENAI_API_KEY"]) == 200
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(jobs)
    service = env_of(home / "service.env")
    assert service["MANYLORA_DATABASE_URL"].startswith("postgresql://manylora_app:")
    assert service["MANYLORA_DATABASE_OWNER_URL"].startswith("postgresql://manylora_owner:")


def test_a_second_up_is_refused(home):
    for detach in (True, False):
        with pytest.raises(StackError, match="already up"):
            commands.up(home=home, slots=2, detach=detach, progress=print)


def test_a_killed_api_comes_back(home):
    def api():
        return next(one for one in commands.status(home=home)["processes"] if one["name"] == "api")

    before = api()
    os.kill(before["pid"], signal.SIGKILL)
    await_true(lambda: api()["state"] == "running" and api()["restarts"] > before["restarts"])
    assert get(env_of(home / "client.env")["MANYLORA_API_URL"] + "/readyz") == 200


def test_down_leaves_nothing_and_the_next_up_has_the_same_key(home):
    key = env_of(home / "client.env")["MANYLORA_API_KEY"]
    pids = [one["pid"] for one in commands.status(home=home)["processes"]]
    commands.down(home=home)
    assert [pid for pid in pids if notes.is_alive(pid)] == []
    assert commands.status(home=home)["state"] == "down"
    with pytest.raises(StackError, match="nothing is up"):
        commands.down(home=home)

    state = commands.up(home=home, slots=2, detach=True, progress=print)
    client = env_of(home / "client.env")
    assert client["MANYLORA_API_KEY"] == key
    assert get(client["OPENAI_BASE_URL"] + "/fine_tuning/jobs", key) == 200

    os.kill(state["supervisor_pid"], signal.SIGKILL)
    for one in state["processes"]:
        await_true(lambda pid=one["pid"]: not notes.is_alive(pid), 30, one["name"])
    assert commands.status(home=home)["state"] == "down"


def test_a_supervisor_that_does_not_start_shows_the_end_of_its_log(tmp_path):
    with pytest.raises(StackError, match="the reason"):
        commands.up(
            home=tmp_path / "home",
            slots=1,
            detach=True,
            progress=print,
            detached=[sys.executable, "-c", "raise SystemExit('the reason')"],
        )
