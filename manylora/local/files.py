"""Files that only their owner may read, and the end of a log. Their contents: credentials.py."""

from __future__ import annotations

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 600, all or nothing, whatever mode an older one had."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(part, path)


def private_folder(path: Path) -> Path:
    """The folder, made if need be, that nobody else may enter."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def tail(path: Path, most: int = 3000) -> str:
    """The end of a log, at most `most` bytes; nothing when there is none."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - most))
            return log.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
