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
from manylora.local import lock, notes
from manylora.local.files import private_folder, tail
from manylora.settings import load_settings

_POLL = 0.2
#: how the lines of supervisor.log begin that `up -d` shows
_NEWS, _FAILED, _HINT = "progress: ", "error: ", "hint: "


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

    `detached` is the command of the supervisor; the home, the slots and the descriptor of the
    home's lock are added to it: of two at once one gets the lock, and only that one starts.

    Raises: StackError.
    """
    if not detach:
        _run(home, slots, progress)
        return None
    with lock.take(_made(home)) as held:
        log = private_folder(home / "logs") / "supervisor.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*detached, str(home), str(slots), str(held.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                pass_fds=[held.fileno()],
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
    home, slots, descriptor = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

    def write(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    try:
        _run(home, slots, lambda line: write(f"{_NEWS}{line}"), descriptor)
    except StackError as error:
        write(f"{_FAILED}{error.message}")
        if error.hint:
            write(f"{_HINT}{error.hint}")
        sys.exit(1)


def _run(
    home: Path, slots: int, progress: Callable[[str], None], descriptor: int | None = None
) -> None:
    from manylora.local.stack import Stack  # servers, ledger: nothing that status or down need

    Stack(home, slots, load_settings(home=home).api_port, progress, descriptor).run()


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
            raise _failure(log)
        for line in lines[shown:]:
            if line.startswith(_NEWS):
                progress(line.removeprefix(_NEWS))
        shown = len(lines)
        found = notes.read(home)
        if found and found["supervisor_pid"] == process.pid and found["state"] == "up":
            return
        if time.monotonic() > deadline:
            raise StackError("the stack takes too long to start", hint=f"see {log}")
        time.sleep(_POLL)


def _failure(log: Path) -> StackError:
    """Why the supervisor ended: in its own words, else by the end of its log."""
    said = tail(log).strip()
    _, known, reason = said.rpartition(f"\n{_FAILED}")
    reason = reason if known else said.removeprefix(_FAILED)
    if not known and reason == said:
        return StackError(f"the stack did not start:\n{said}", hint=f"see {log}")
    message, _, hint = reason.partition(f"\n{_HINT}")
    return StackError(message, hint=hint or f"see {log}")


if __name__ == "__main__":
    main()
