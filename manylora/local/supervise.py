"""Child processes kept alive: started in order, restarted when they die, stopped floor by floor.

What they are is in stack.py. `status.json` (notes.py) says at any time what runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from manylora.errors import StackError
from manylora.local import notes, tether
from manylora.local.files import private_folder, tail

_LEAST_BACKOFF = 0.2
_MOST_BACKOFF = 5.0
_STEADY = 30.0
_POLL = 0.2
_LOG_BYTES = 16 * 2**20
_GIVE_UP = 3


@dataclass
class Child:
    """One program. `ready` is asked after each start; `timeout` in seconds is given it to end.

    Those of a higher `floor` need those below: they end first, all of one floor together.
    """

    name: str
    argv: list[str]
    ready: Callable[[], bool]
    user: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    timeout: float = 20.0
    floor: int = 0
    cwd: Path = Path("/")
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    backoff: float = 0.0
    state: str = "stopped"  # starting | running | backoff | stopped
    started: float = 0.0
    due: float = 0.0
    probe: Future[bool] | None = None


class Supervisor:
    """The children of one stack; used from one thread, with which they end."""

    def __init__(self, home: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.home = home
        self.children: list[Child] = []
        self.state = "starting"
        self.stopping = Event()
        #: More for status.json: ports, URLs.
        self.facts: dict[str, Any] = {}
        self._clock = clock
        self._started_at = time.time()
        self._probes = ThreadPoolExecutor(thread_name_prefix="ready")
        private_folder(home / "run")
        private_folder(home / "logs")

    def start(self, child: Child) -> None:
        """Start a child; it is looked after from here on."""
        self._rotate(child)
        self._spawn(child)
        self.children.append(child)
        self.note()

    def await_ready(self, child: Child, seconds: float = 120.0) -> None:
        """Wait until a child answers, looking after all of them meanwhile.

        Raises: StackError with the end of its log; KeyboardInterrupt when told to stop.
        """
        deadline = self._clock() + seconds
        while child.state != "running":
            if self.stopping.wait(_POLL):
                raise KeyboardInterrupt
            self.look_after()
            if self._clock() > deadline or child.restarts >= _GIVE_UP:
                log = self.log_of(child)
                raise StackError(f"{child.name} did not start:\n{tail(log)}", hint=f"see {log}")

    def look_after(self) -> None:
        """Restart what has died, when its back-off is over; see what has come up."""
        now = self._clock()
        before = [(child.state, child.restarts) for child in self.children]
        for child in self.children:
            if child.state in ("starting", "running") and _has_ended(child):
                _reap(child)
                steady = now - child.started >= _STEADY
                doubled = min(_MOST_BACKOFF, child.backoff * 2)
                child.backoff = _LEAST_BACKOFF if steady else max(_LEAST_BACKOFF, doubled)
                child.due = now + child.backoff
                child.state = "backoff"
            if child.state == "backoff" and now >= child.due:
                child.restarts += 1
                self._spawn(child)
            if child.state == "starting":
                self._ask(child)
        if before != [(child.state, child.restarts) for child in self.children]:
            self.note()

    def run(self) -> None:
        """Look after the children until told to stop."""
        self.state = "up"
        self.note()
        while not self.stopping.wait(_POLL):
            self.look_after()

    def stop(self) -> None:
        """End every child, the highest floor first."""
        self.state = "stopping"
        self.note()
        self._probes.shutdown(wait=False, cancel_futures=True)
        for floor in sorted({child.floor for child in self.children}, reverse=True):
            self._stop([child for child in self.children if child.floor == floor])

    def _stop(self, children: list[Child]) -> None:
        """End children together, each in its own time."""
        alive = [c for c in children if c.process is not None and c.state != "backoff"]
        asked = self._clock()
        for child in alive:
            assert child.process is not None
            child.process.send_signal(child.stop_signal)
        while alive:
            for child in list(alive):
                if _has_ended(child) or self._clock() - asked >= child.timeout:
                    _reap(child)
                    child.state = "stopped"
                    alive.remove(child)
                    self.note()
            if alive:
                time.sleep(0.02)
        for child in children:
            child.state = "stopped"
        self.note()

    def note(self) -> None:
        """Write what runs to run/status.json."""
        processes = [
            {
                "name": child.name,
                "pid": child.process.pid if child.process else None,
                "state": child.state,
                "restarts": child.restarts,
            }
            for child in self.children
        ]
        who = {"supervisor_pid": os.getpid(), "supervisor_born": notes.birth(os.getpid())}
        when = {"started_at": self._started_at, "state": self.state}
        notes.write(self.home, {**who, **when, **self.facts, "processes": processes})

    def log_of(self, child: Child) -> Path:
        """Where a child's output goes."""
        return self.home / "logs" / f"{child.name}.log"

    def _rotate(self, child: Child) -> None:
        log = self.log_of(child)
        if log.exists():
            os.replace(log, log.with_suffix(".log.1"))

    def _spawn(self, child: Child) -> None:
        log = self.log_of(child)
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            self._rotate(child)
        with log.open("ab") as out:
            child.process = subprocess.Popen(
                tether.command(child.argv, child.user),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=child.env or None,
                start_new_session=True,
                cwd=child.cwd,
            )
        child.state = "starting"
        child.started = self._clock()
        child.probe = None

    def _ask(self, child: Child) -> None:
        """Ask in a thread whether a child is ready, so that a slow answer holds up nobody."""
        if child.probe is None:
            child.probe = self._probes.submit(child.ready)
        elif child.probe.done():
            # A probe that raises is an answer, too: not ready.
            if child.probe.exception() is None and child.probe.result():
                child.state = "running"
            child.probe = None


def _has_ended(child: Child) -> bool:
    """Whether a child has ended; it stays unreaped, so that its number stays its own."""
    if child.process is None or child.process.returncode is not None:
        return True
    flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
    return os.waitid(os.P_PID, child.process.pid, flags) is not None


def _reap(child: Child) -> None:
    """End a child's whole group, whatever is left of it, and take its exit status."""
    if child.process is not None and child.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()
