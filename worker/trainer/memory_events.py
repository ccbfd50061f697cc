"""What the kernel says of processes it ended for want of memory, where there are cgroups (v2)."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def oom_kills(root: Path = _ROOT, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """How many processes of this one's cgroup were killed for memory so far; None where the kernel
    does not tell."""
    try:
        line = next(text for text in own.read_text().splitlines() if text.startswith("0::"))
        events = root / line[3:].lstrip("/") / "memory.events"
        told = dict(text.split() for text in events.read_text().splitlines())
        return int(told["oom_kill"])
    except (OSError, StopIteration, KeyError, ValueError):
        return None
