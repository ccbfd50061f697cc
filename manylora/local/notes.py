"""`run/status.json`: the supervisor's notes on what runs, readable when nothing else answers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write(home: Path, facts: dict[str, Any]) -> None:
    """Put down what runs, all or nothing."""
    path = home / "run" / "status.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(facts), encoding="utf-8")
    os.replace(part, path)


def read(home: Path) -> dict[str, Any] | None:
    """The notes of a supervisor that lives; None when there is none."""
    found = _load(home / "run" / "status.json")
    if found is None or not is_alive(found["supervisor_pid"], found.get("supervisor_born")):
        return None
    return found


def trainers(home: Path) -> list[dict[str, Any]]:
    """The notes that workers keep on their trainers; those of dead ones left out."""
    found = [_load(path) for path in sorted((home / "run").glob("trainer-*.json"))]
    return [note for note in found if note is not None and is_alive(note["pid"])]


def clear(home: Path) -> None:
    """Nothing runs any more."""
    (home / "run" / "status.json").unlink(missing_ok=True)


def is_alive(pid: int | None, born: int | None = None) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not.

    `born` tells it from a later process that was given the same number.
    """
    fields = _stat(pid) if pid else None
    if fields is None or fields[0] == "Z":
        return False
    return born is None or int(fields[19]) == born


def birth(pid: int) -> int | None:
    """When a process was born, in the kernel's ticks."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _stat(pid: int) -> list[str] | None:
    """What follows the program's name in /proc/PID/stat: the state is first."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def _load(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found
