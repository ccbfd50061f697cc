"""Child processes kept alive: started in order, restarted when they die, stopped in reverse.

What they are is in stack.py. `status.json` says at any time what runs, without asking anybody.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from manylora.errors import StackError
from manylora.local import tether

_MOST_BACKOFF = 5.0
_STEADY = 30.0
_POLL = 0.2


@dataclass
class Child:
    """One program. `ready` is asked after its start; `timeout` in seconds is given it to end."""

    name: str
    argv: list[str]
    ready: Callable[[], bool]
    user: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    timeout: float = 20.0
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    backoff: float = 0.0
    state: str = "stopped"
    started: float = 0.0
    due: float = 0.0


class Supervisor:
    """The children of one stack; used from one thread."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.children: list[Child] = []
        self.state = "starting"
        self.stopping = Event()
        (home / "run").mkdir(parents=True, exist_ok=True)
        (home / "logs").mkdir(parents=True, exist_ok=True)

    def start(self, child: Child) -> None:
        """Start a child; it is looked after from here on."""
        self.children.append(child)
        log = self._log(child)
        if log.exists():
            os.replace(log, log.with_suffix(".log.1"))
        self._spawn(child)
        self.note()

    def await_ready(self, child: Child, seconds: float = 120.0) -> None:
        """Wait until a child answers, looking after all of them meanwhile.

        Raises: StackError with the end of its log; KeyboardInterrupt when told to stop.
        """
        deadline = time.monotonic() + seconds
        while not child.ready():
            self.look_after()
            if self.stopping.wait(_POLL):
                raise KeyboardInterrupt
            if time.monotonic() > deadline or child.restarts >= 3:
                tail = self._log(child).read_text(encoding="utf-8", errors="replace")[-3000:]
                raise StackError(f"{child.name} did not start:\n{tail}")

    def look_after(self) -> None:
        """Restart what has died, when its back-off is over."""
        now = time.monotonic()
        changed = False
        for child in self.children:
            if child.state == "running" and child.process and child.process.poll() is not None:
                steady = now - child.started > _STEADY
                child.backoff = 0.2 if steady else min(_MOST_BACKOFF, max(0.2, child.backoff * 2))
                child.due = now + child.backoff
                child.state = "backoff"
                changed = True
            if child.state == "backoff" and now >= child.due:
                child.restarts += 1
                self._spawn(child)
                changed = True
        if changed:
            self.note()

    def run(self) -> None:
        """Look after the children until told to stop."""
        self.state = "up"
        self.note()
        while not self.stopping.wait(_POLL):
            self.look_after()

    def stop(self) -> None:
        """End every child, last started first."""
        self.state = "stopping"
        self.note()
        for child in reversed(self.children):
            process = child.process
            if process is not None and process.poll() is None:
                process.send_signal(child.stop_signal)
                try:
                    process.wait(child.timeout)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            child.state = "stopped"
            self.note()

    def note(self) -> None:
        """Write what runs to run/status.json, all or nothing."""
        path = self.home / "run" / "status.json"
        facts = {
            "supervisor_pid": os.getpid(),
            "state": self.state,
            "processes": [
                {
                    "name": child.name,
                    "pid": child.process.pid if child.process else None,
                    "state": child.state,
                    "restarts": child.restarts,
                }
                for child in self.children
            ],
        }
        part = path.with_suffix(".part")
        part.write_text(json.dumps(facts), encoding="utf-8")
        os.replace(part, path)

    def _log(self, child: Child) -> Path:
        return self.home / "logs" / f"{child.name}.log"

    def _spawn(self, child: Child) -> None:
        with self._log(child).open("ab") as out:
            child.process = subprocess.Popen(
                tether.command(child.argv, child.user),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=child.env or None,
                start_new_session=True,
                cwd="/",
            )
        child.state = "running"
        child.started = time.monotonic()
