"""One supervisor for each home: a lock the kernel lets go of when its holder dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from manylora.errors import StackError


def take(home: Path) -> IO[str]:
    """Hold the home until the file given back is closed. Raises: StackError for a second holder."""
    path = home / "run" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        pid = lock.read().strip()
        lock.close()
        raise StackError(
            f"already up (pid {pid}) in {home}", hint="manylora status; manylora down"
        ) from error
    return _signed(lock)


def inherit(descriptor: int) -> IO[str]:
    """The lock that a parent holds and has handed down; it is held until both have closed it."""
    os.set_inheritable(descriptor, False)
    return _signed(os.fdopen(descriptor, "a+", encoding="utf-8"))


def _signed(lock: IO[str]) -> IO[str]:
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
