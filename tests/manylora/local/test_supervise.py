"""The supervisor with small real programs: restarts, back-off, order, stopping, dying with it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from manylora.errors import StackError
from manylora.local import lock, notes
from manylora.local.supervise import Child, Supervisor

from .conftest import await_true

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def supervisor(tmp_path):
    one = Supervisor(tmp_path / "a home")
    yield one
    one.stop()


def python(code):
    return [sys.executable, "-c", code]


def watch(supervisor, condition, seconds=30.0):
    """Let the supervisor work until a condition holds."""

    def step():
        supervisor.look_after()
        return condition()

    return await_true(step, seconds)


def test_a_killed_child_comes_back_and_is_noted(supervisor):
    child = Child("sleeper", SLEEPER, lambda: True)
    supervisor.start(child)
    supervisor.await_ready(child)
    first = child.process.pid
    os.kill(first, signal.SIGKILL)
    watch(supervisor, lambda: child.restarts == 1 and child.state == "running")
    assert child.process.pid != first
    noted = notes.read(supervisor.home)
    assert noted["processes"] == [
        {"name": "sleeper", "pid": child.process.pid, "state": "running", "restarts": 1}
    ]


def test_a_child_that_keeps_dying_is_always_restarted_with_bounded_back_off(supervisor):
    now = [0.0]
    supervisor._clock = lambda: now[0]
    child = Child("short", python("pass"), lambda: False)
    supervisor.start(child)
    delays = []
    for _ in range(8):
        watch(supervisor, lambda: child.state == "backoff")
        delays.append(round(child.due - now[0], 3))
        now[0] = child.due
        supervisor.look_after()
        assert child.state == "starting"
    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert child.restarts == 8


def test_thirty_seconds_up_reset_the_back_off(supervisor):
    now = [0.0]
    supervisor._clock = lambda: now[0]
    child = Child("sleeper", SLEEPER, lambda: True, backoff=5.0)
    supervisor.start(child)
    now[0] = 30.0
    os.kill(child.process.pid, signal.SIGKILL)
    watch(supervisor, lambda: child.state == "backoff")
    assert child.due - now[0] == pytest.approx(0.2)


def test_a_child_that_does_not_start_says_why(supervisor):
    child = Child("broken", python("raise SystemExit('the reason')"), lambda: False)
    supervisor.start(child)
    with pytest.raises(StackError, match="broken did not start") as caught:
        supervisor.await_ready(child, seconds=30)
    assert "the reason" in caught.value.message


def test_a_missing_program_says_why(supervisor):
    child = Child("missing", ["/nowhere/program"], lambda: False)
    supervisor.start(child)
    with pytest.raises(StackError, match="/nowhere/program"):
        supervisor.await_ready(child, seconds=30)


def test_a_probe_that_raises_means_not_ready_yet(supervisor):
    answers = iter([ValueError("not yet"), False, True])

    def ready():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    child = Child("sleeper", SLEEPER, ready)
    supervisor.start(child)
    supervisor.await_ready(child, seconds=30)
    assert child.state == "running"


def test_higher_floors_stop_first_with_their_own_signal(supervisor, tmp_path):
    told = tmp_path / "told"
    ready = tmp_path / "ready"
    code = f"""
import signal, sys
def end(number, _):
    with open({str(told)!r}, "a") as out: out.write(sys.argv[1] + str(number) + " ")
    sys.exit()
signal.signal(signal.SIGINT, end); signal.signal(signal.SIGTERM, end)
open({str(ready)!r} + sys.argv[1], "w").close()
signal.pause()
"""
    for name, number, floor in (("a", signal.SIGINT, 0), ("b", signal.SIGTERM, 1)):
        at = ready.with_name(f"ready{name}")
        child = Child(name, [*python(code), name], at.exists, stop_signal=number, floor=floor)
        supervisor.start(child)
        supervisor.await_ready(child)
    supervisor.stop()
    assert told.read_text().split() == [f"b{signal.SIGTERM:d}", f"a{signal.SIGINT:d}"]


def test_children_of_one_floor_end_together(supervisor, tmp_path):
    """Each waits for the other's signal: one after the other, neither would end."""
    code = """
import os, signal, sys, time
mine, other = sys.argv[1:]
signal.signal(signal.SIGTERM, lambda *_: open(mine + ".told", "w").close())
open(mine, "w").close()
while not (os.path.exists(mine + ".told") and os.path.exists(other + ".told")): time.sleep(0.01)
open(mine + ".ended", "w").close()
"""
    paths = [tmp_path / name for name in "ab"]
    for mine, other in (paths, paths[::-1]):
        child = Child(mine.name, [*python(code), str(mine), str(other)], mine.exists)
        supervisor.start(child)
        supervisor.await_ready(child)
    supervisor.stop()
    assert all(path.with_suffix(".ended").exists() for path in paths)


def test_stop_ends_a_deaf_child_and_its_whole_group(supervisor, tmp_path):
    pid = tmp_path / "grandchild"
    code = f"""
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen({SLEEPER!r})
open({str(pid)!r}, "w").write(str(grandchild.pid) + " ")
signal.pause()
"""
    child = Child("deaf", python(code), lambda: pid.exists() and " " in pid.read_text())
    child.timeout = 0.2
    supervisor.start(child)
    supervisor.await_ready(child)
    grandchild = int(pid.read_text())
    supervisor.stop()
    assert not notes.is_alive(child.process.pid)
    await_true(lambda: not notes.is_alive(grandchild))


def test_nothing_outlives_a_supervisor_that_is_killed(tmp_path):
    code = f"""
from pathlib import Path
from manylora.local.supervise import Child, Supervisor
one = Supervisor(Path({str(tmp_path)!r}))
for name in "ab":
    child = Child(name, {SLEEPER!r}, lambda: True)
    one.start(child)
    one.await_ready(child)
one.run()
"""
    process = subprocess.Popen(python(code))

    def up():
        found = notes.read(tmp_path)
        return found if found and found["state"] == "up" else None

    found = await_true(up)
    children = [psutil.Process(one["pid"]) for one in found["processes"]]
    await_true(lambda: all("sleep" in " ".join(one.cmdline()) for one in children))
    process.kill()
    process.wait()
    for one in found["processes"]:
        await_true(lambda pid=one["pid"]: not notes.is_alive(pid), 10)
    assert notes.read(tmp_path) is None


def test_the_last_log_is_put_aside_at_the_start(supervisor):
    child = Child("talker", python("print('new', flush=True); import time; time.sleep(600)"), bool)
    log = supervisor.log_of(child)
    log.write_text("old")
    supervisor.start(child)
    await_true(lambda: log.read_text() == "new\n")
    assert log.with_suffix(".log.1").read_text() == "old"


def test_a_home_is_held_once(tmp_path):
    held = lock.take(tmp_path)
    with pytest.raises(StackError, match=f"already up \\(pid {os.getpid()}\\)"):
        lock.take(tmp_path)
    held.close()
    lock.take(tmp_path).close()


def test_a_number_given_to_another_process_is_not_mistaken(tmp_path):
    born = notes.birth(os.getpid())
    assert notes.is_alive(os.getpid(), born)
    assert not notes.is_alive(os.getpid(), born + 1)
    (tmp_path / "run").mkdir()
    facts = {"supervisor_pid": os.getpid(), "supervisor_born": born + 1, "started_at": time.time()}
    notes.write(tmp_path, facts)
    assert notes.read(tmp_path) is None
