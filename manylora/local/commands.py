"""`up`, `down` and `status` of the embedded stack; also the entry of the detached supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from manylora.errors import StackError
from manylora.local import notes
from manylora.local.files import private_folder, tail
from manylora.settings import load_settings

_POLL = 0.2


def up(
    *,
    home: Path,
    slots: int,
    detach: bool,
    progress: Callable[[str], None],
    detached: Sequence[str] = (sys.executable, "-m", "manylora.local.commands"),
    timeout: float = 600.0,
) -> dict[str, Any] | None:
    """Start the stack: in this process until Ctrl-C, or detached, returning once it is ready.

    `detached` is the command of the supervisor; the home and the slots are added to it.

    Raises: StackError.
    """
    if not detach:
        from manylora.local.stack import Stack  # servers, ledger: nothing that status or down need

        Stack(home, slots, load_settings(home=home).api_port, progress).run()
        return None
    running = notes.read(home)
    if running is not None:
        raise StackError(
            f"already up (pid {running['supervisor_pid']}) in {home}",
            hint="manylora status; manylora down",
        )
    log = private_folder(_made(home) / "logs") / "supervisor.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*detached, str(home), str(slots)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd="/",
        )
    try:
        _await_up(home, process, log, progress, time.monotonic() + timeout)
    except BaseException:  # Ctrl-C included: half a stack must not be left behind
        if process.poll() is None:
            process.terminate()
            process.wait()
        raise
    return status(home=home)


def down(*, home: Path, timeout: float = 120.0) -> None:
    """Stop the stack and wait until nothing of it is left. Raises: StackError."""
    found = notes.read(home)
    if found is None:
        raise StackError(f"nothing is up in {home}", hint="manylora up -d")
    pid, born = found["supervisor_pid"], found.get("supervisor_born")
    pids = [one["pid"] for one in [*found["processes"], *notes.trainers(home)] if one["pid"]]
    parts = [(pid, born), *((one, notes.birth(one)) for one in pids)]
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it ended by itself just now
    except PermissionError as error:
        raise StackError(f"pid {pid} belongs to another user", hint="ask them") from error
    deadline = time.monotonic() + timeout
    while any(notes.is_alive(*part) for part in parts):
        if time.monotonic() > deadline:
            raise StackError(f"pid {pid} does not stop", hint=f"see {home / 'logs'}")
        time.sleep(_POLL)


def status(*, home: Path) -> dict[str, Any]:
    """What runs, from the supervisor's own notes: needs neither database nor API."""
    found = notes.read(home)
    if found is None:
        return {"state": "down", "home": str(home), "processes": []}
    for one in found["processes"]:
        if not notes.is_alive(one["pid"]) and one["state"] in ("starting", "running"):
            one["state"] = "backoff"  # dead for a moment, and not yet noticed
    processes = [*found["processes"], *notes.trainers(home)]
    return {**found, "processes": processes, "home": str(home)}


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


def _made(home: Path) -> Path:
    # The mode is explained in stack.py.
    home.mkdir(parents=True, exist_ok=True, mode=0o711 if os.geteuid() == 0 else 0o700)
    return home


def _await_up(
    home: Path,
    process: subprocess.Popen[bytes],
    log: Path,
    progress: Callable[[str], None],
    deadline: float,
) -> None:
    shown = 0
    while True:
        ended = process.poll() is not None
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if ended:
            raise StackError(f"the stack did not start:\n{tail(log).strip()}", hint=f"see {log}")
        for line in lines[shown:]:
            progress(line)
        shown = len(lines)
        found = notes.read(home)
        if found and found["supervisor_pid"] == process.pid and found["state"] == "up":
            return
        if time.monotonic() > deadline:
            raise StackError("the stack takes too long to start", hint=f"see {log}")
        time.sleep(_POLL)


if __name__ == "__main__":
    main()
