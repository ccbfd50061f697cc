"""`up`, `down` and `status` of the embedded stack; also the entry of the detached supervisor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manylora.errors import StackError
from manylora.local.stack import Stack
from manylora.settings import load_settings

_POLL = 0.2


def up(
    *, home: Path, slots: int, detach: bool, progress: Callable[[str], None]
) -> dict[str, Any] | None:
    """Start the stack: in this process until Ctrl-C, or detached, returning once it is ready.

    Raises: StackError.
    """
    if not detach:
        Stack(home, slots, load_settings(home=home).api_port, progress).run()
        return None
    running = _status(home)
    if running is not None:
        raise StackError(
            f"already up (pid {running['supervisor_pid']}) in {home}",
            hint="manylora status; manylora down",
        )
    log = home / "logs" / "supervisor.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "manylora.local.commands", str(home), str(slots)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd="/",
        )
    shown = 0
    while True:
        told = log.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in told[shown:]:
            progress(line)
        shown = len(told)
        found = _status(home)
        if found is not None and found["state"] == "up":
            return status(home=home)
        if process.poll() is not None:
            raise StackError("the stack did not start", hint=f"see {log}")
        time.sleep(_POLL)


def down(*, home: Path, timeout: float = 120.0) -> dict[str, Any] | None:
    """Stop the stack and wait until nothing of it is left. Raises: StackError."""
    found = _status(home)
    if found is None:
        raise StackError(f"nothing is up in {home}", hint="manylora up -d")
    pid = found["supervisor_pid"]
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while _alive(pid):
        if time.monotonic() > deadline:
            raise StackError(f"pid {pid} does not stop", hint=f"see {home / 'logs'}")
        time.sleep(_POLL)
    return None


def status(*, home: Path) -> dict[str, Any]:
    """What runs, from the supervisor's own notes: needs neither database nor API."""
    found = _status(home)
    if found is None:
        return {"state": "down", "home": str(home), "processes": []}
    for note in sorted((home / "run").glob("trainer-*.json")):
        trainer = json.loads(note.read_text(encoding="utf-8"))
        if _alive(trainer["pid"]):
            found["processes"].append(trainer)
    return {**found, "home": str(home)}


def _status(home: Path) -> dict[str, Any] | None:
    try:
        text = (home / "run" / "status.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    found: dict[str, Any] = json.loads(text)
    return found if _alive(found["supervisor_pid"]) else None


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def main() -> None:
    """The detached supervisor."""
    home, slots = Path(sys.argv[1]), int(sys.argv[2])

    def progress(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    try:
        up(home=home, slots=slots, detach=False, progress=progress)
    except StackError as error:
        progress(f"error: {error.message}")
        sys.exit(1)


if __name__ == "__main__":
    main()
